//! End-to-end tests of secrets in a pod: sealed ones, and which container is given what.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::demo::{self, start_pod};
use crate::e2e::refused_with;
use crate::process::run_with;
use crate::world::{Recipe, World};

/// Prints what it was given, and waits.
const SHOWS_SECRETS: &str = "echo variable:$PASSWORD; echo file:$(cat /etc/app/token); echo plain:$(cat /etc/app/plain); echo ready; \
                             trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

/// A variable with a vault secret and a file with an envelope, made by `kata-cc secret` and carried by the host.
pub(crate) async fn sealed_secrets(world: &World) -> Result<()> {
    const PASSWORD: &str = "password-in-a-vault-51c2";
    const TOKEN: &str = "token-in-an-envelope-88e0";
    let (cli, dir) = (world.artifacts().bin("kata-cc"), world.work().join("sealed"));
    fs::create_dir_all(dir.join("volume"))?;
    let kata_cc = |args: &[&str]| run_with(Command::new(&cli).args(args).current_dir(&dir));
    kata_cc(&["secret", "keygen", "sealing.jwk"])?;
    kata_cc(&["image", "keygen", "kek"])?;
    fs::write(dir.join("token"), TOKEN)?;
    let public = kata_cc(&["secret", "public-key", "--key", "sealing.jwk"])?;
    for (path, content) in [
        ("default/sealing/1", public.into_bytes()),
        ("default/sealed/password", PASSWORD.into()),
        ("default/sealed/kek", fs::read(dir.join("kek"))?),
    ] {
        world.broker().set_resource(world.work(), path, &content)?;
    }
    let seal = |kind: &[&str]| -> Result<String> {
        let signer = ["--key", "sealing.jwk", "--kid", "kbs:///default/sealing/1"];
        Ok(kata_cc(&[&["secret", "seal"], kind, &signer].concat())?.trim().to_owned())
    };
    let vault = seal(&["vault", "--resource", "kbs:///default/sealed/password"])?;
    let envelope = seal(&["envelope", "--resource", "kbs:///default/sealed/kek", "--key-file", "kek", "--in", "token"])?;
    fs::write(dir.join("volume/token"), envelope)?;
    fs::write(dir.join("volume/plain"), "as it is")?;
    let recipe = |name: &str, sealed: &str, allowed: &[&str]| Recipe {
        env: vec![("PASSWORD".to_owned(), sealed.to_owned())],
        volumes: vec![(dir.join("volume"), "/etc/app".to_owned())],
        container: serde_json::json!({
            "env": [{ "name": "PATH", "value": "/bin" }, { "name": "PASSWORD", "pattern": "sealed[.][A-Za-z0-9._-]+" }],
            "mounts": [{ "destination": "/etc/app", "read_only": true }],
            "sealed_secrets": allowed,
        }),
        sealing_keys: vec!["default/sealing/1".to_owned()],
        ..Recipe::script(name, SHOWS_SECRETS)
    };
    let both = ["default/sealed/password", "default/sealed/kek"];

    let before = world.broker().attestations()?;
    let pod = world.pod(&recipe("e2e-sealed", &vault, &both))?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &pod).await?;
    let result = async {
        let log = cri.wait_log(&pod, &running.container, "\nready\n", Duration::from_secs(60)).await?;
        for line in [format!("variable:{PASSWORD}\n"), format!("file:{TOKEN}\n"), "plain:as it is\n".to_owned()] {
            ensure!(log.contains(&line), "{line:?} is missing; the workload printed:\n{log}");
        }
        let attestations = world.broker().attestations()? - before;
        ensure!(attestations == 1, "expected one attestation for the pod, the broker counted {attestations}");
        // containerd hands it the container's variables as it knows them: sealed.
        let listed = cri.exec(&running.container, &demo::LISTED_EXEC).await?;
        ensure!(listed.exit_code == 0, "the listed exec ended with {}: {}", listed.exit_code, listed.stderr);
        Ok(())
    }
    .await;
    cri.stop_and_remove(&running.container, 5).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    result?;

    let payload = vault.split('.').nth(2).context("a sealed secret has four parts")?;
    let unsigned = format!("sealed.fakejwsheader.{payload}.fakesignature");
    let place = "sealed secret in the environment variable";
    refused_with(world, &recipe("e2e-sealed-unsigned", &unsigned, &both), &[place, "unsigned secrets are not taken"]).await?;
    refused_with(world, &recipe("e2e-sealed-other", &vault, &both[1..]), &[place, "UnsealSecretRequest"]).await
}

/// Two containers of one pod, each with a resource of its own, both asking for both.
pub(crate) async fn resources_by_container(world: &World) -> Result<()> {
    let url = "http://127.0.0.1:8006/cdh/resource/default/asks";
    let script = format!(
        "for r in one two; do echo $r:$(wget -q -O - {url}/$r 2>&1); done; echo ready; \
         trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"
    );
    for name in ["one", "two"] {
        world.broker().set_resource(world.work(), &format!("default/asks/{name}"), format!("resource-{name}").as_bytes())?;
    }
    let has = |name: &str| serde_json::json!({ "resources": [format!("default/asks/{name}")] });
    let recipe =
        Recipe { container: has("one"), others: vec![("e2e-asks-two".to_owned(), has("two"))], ..Recipe::script("e2e-asks", &script) };
    let first = world.pod(&recipe)?;
    let mut second = first.clone();
    second.name = "e2e-asks-two".to_owned();
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &first).await?;
    let other = demo::start_container(&mut cri, &second, &running.sandbox).await;
    let result = async {
        let other = other.as_ref().map_err(|error| anyhow::anyhow!("the second container: {error:#}"))?;
        for (pod, container, own, others) in [(&first, &running.container, "one", "two"), (&second, other, "two", "one")] {
            let log = cri.wait_log(pod, container, "ready\n", Duration::from_secs(60)).await?;
            ensure!(log.contains(&format!("{own}:resource-{own}\n")), "{} did not get what is its own; it printed:\n{log}", pod.name);
            let line = log.lines().find(|line| line.starts_with(&format!("{others}:"))).unwrap_or_default();
            ensure!(line.contains("403") && !line.contains("resource-"), "{} was not refused what is another's: {line:?}", pod.name);
        }
        Ok(())
    }
    .await;
    if let Ok(other) = &other {
        cri.stop_and_remove(other, 5).await?;
    }
    cri.stop_and_remove(&running.container, 5).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    result
}
