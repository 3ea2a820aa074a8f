//! Preparing a machine.
//!
//! Three kinds of things are needed that Cargo does not bring: packages of the machine's own Debian release (installed,
//! [`debian`]), packages of other releases (merely unpacked into the cache, [`unpacked`]), and the vsock helper
//! ([`tools`]).

pub(crate) mod debian;
pub(crate) mod python;
pub(crate) mod tools;
pub(crate) mod unpacked;

use anyhow::Result;

use crate::context::Context;

/// Does it all; what is there already costs nothing.
pub(crate) fn all(cx: &Context) -> Result<()> {
    debian::install(cx)?;
    unpacked::fetch(cx)?;
    tools::install(cx)
}

/// Says what [`all`] would do.
pub(crate) fn report(cx: &Context) -> Result<()> {
    let missing = debian::missing()?;
    for package in &missing {
        println!("install Debian package {}: {}", package.name, package.why);
    }
    let unpacked = unpacked::missing(cx);
    for package in &unpacked {
        println!("unpack Debian package {} of {}: {}", package.package, package.suite, package.why);
    }
    let tool = tools::is_missing(cx);
    if tool {
        println!("cargo install {} {}: {}", tools::CRATE, tools::VERSION, tools::WHY);
    }
    if missing.is_empty() && unpacked.is_empty() && !tool {
        println!("nothing is missing");
    }
    Ok(())
}
