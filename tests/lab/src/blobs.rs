//! The node's blob cache: the second pod of an image downloads no layer, and a cache that lies costs a download and nothing else.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::demo::{WORKLOAD, start_pod};
use crate::process::run;
use crate::world::{Recipe, World};

/// The handler whose class names the cache. The others have none: what the attacks change in the registry must be seen.
pub(crate) const HANDLER: &str = "kata-cc-blobs";
/// How long the node may take to have on its disk what a guest has given it.
const SETTLED: Duration = Duration::from_secs(60);

/// Runs the good pod to where it is ready, and says how often the registry was asked for each layer meanwhile.
async fn requests(world: &World, name: &str, layers: &[String]) -> Result<Vec<usize>> {
    let count = || layers.iter().map(|digest| world.registry().blob_requests(digest)).collect::<Result<Vec<_>>>();
    let before = count()?;
    let pod = world.pod(&Recipe { handler: HANDLER, ..Recipe::script(name, WORKLOAD) })?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &pod).await?;
    let ready = cri.wait_log(&pod, &running.container, "\nready\n", Duration::from_secs(60)).await;
    // The pod stays until the node has everything: what is still on its way would be lost with the guest.
    let settled = settled(world, layers).await;
    cri.stop_and_remove(&running.container, 10).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    ready?;
    settled?;
    Ok(count()?.iter().zip(before).map(|(after, before)| after - before).collect())
}

fn file(world: &World, digest: &str) -> Result<PathBuf> {
    Ok(world.containerd().blobs().join(digest.strip_prefix("sha256:").with_context(|| format!("not a digest: {digest}"))?))
}

/// Waits until the node has these layers, as they are.
async fn settled(world: &World, layers: &[String]) -> Result<()> {
    let start = Instant::now();
    loop {
        let mut missing = Vec::new();
        for digest in layers {
            let path = file(world, digest)?;
            let found = if path.exists() { run("sha256sum", [&path])? } else { "nothing".to_owned() };
            if digest.strip_prefix("sha256:") != found.split(' ').next() {
                missing.push(format!("{digest}: {found}"));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed() < SETTLED, "the node does not have what guests downloaded:\n{}", missing.join("\n"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The first pod fills the cache, the second downloads nothing, the third is lied to.
pub(crate) async fn node_cache(world: &World) -> Result<()> {
    let layers = world.layers("good")?;
    let first = requests(world, "e2e-blobs-fill", &layers).await?;
    ensure!(first.iter().all(|&count| count > 0), "the cache was not empty: the registry was asked {first:?} times");
    let second = requests(world, "e2e-blobs-hit", &layers).await?;
    ensure!(second.iter().all(|&count| count == 0), "layers that the node has were downloaded: the registry was asked {second:?} times");
    for digest in &layers {
        let path = file(world, digest)?;
        let mut bytes = fs::read(&path)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).with_context(|| format!("{} is empty", path.display()))? ^= 1;
        fs::write(&path, bytes)?;
    }
    // `settled` in there is the other half: the guest has given the node what is right.
    let lied_to = requests(world, "e2e-blobs-lie", &layers).await?;
    ensure!(lied_to.iter().all(|&count| count > 0), "a changed layer was not noticed: the registry was asked {lied_to:?} times");
    Ok(())
}
