//! The main job and the attacks on it: what `cargo xtask demo` runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::Semaphore;

use crate::cri::{Cri, PodSpec};
use crate::report::{DemoReport, PodReport, Refusal};
use crate::world::{Case, World};

/// What the workload does: fetch a secret and its own token from the pod-local API, print them, then wait to be stopped.
pub(crate) const WORKLOAD: &str = r#"
trap 'exit 0' TERM
echo "motd: $(cat /app/motd)"
echo "secret: $(wget -q -O - http://127.0.0.1:8006/cdh/resource/default/demo/secret)"
token=$(wget -q -O - 'http://127.0.0.1:8006/aa/token?token_type=kbs')
claims=${token#*.}; claims=${claims%%.*}
echo "token claims: $claims"
echo ready
while :; do sleep 1 & wait $!; done
"#;

/// The one command that the policy lets `exec` run.
pub(crate) const LISTED_EXEC: [&str; 2] = ["cat", "/app/motd"];

/// Runs everything and reports.
pub(crate) async fn run(world: &mut World) -> Result<DemoReport> {
    let baseline = world.baseline()?;
    world.say("the main job: an encrypted, signed image in an attested pod");
    let before = world.broker().attestations()?;
    let start = Instant::now();
    let good = world.pod(&Case::GOOD.recipe())?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &good).await.context("the pod that must run did not")?;
    let output = cri.wait_log(&good, &running.container, "\nready\n", Duration::from_secs(60)).await?;
    world.say(&format!("the pod is ready after {:.1} s", start.elapsed().as_secs_f64()));
    let attestations = world.broker().attestations()? - before;

    let allowed = cri.exec(&running.container, &LISTED_EXEC).await.context("the exec that the policy lists was refused")?;
    anyhow::ensure!(
        allowed.exit_code == 0 && allowed.stdout.contains("hello"),
        "the listed exec gave {} {:?} {:?}",
        allowed.exit_code,
        allowed.stdout,
        allowed.stderr
    );
    let exec = match cri.exec(&running.container, &["cat", "/etc/passwd"]).await {
        Ok(output) => Refusal {
            case: "exec of a command that the policy does not list".to_owned(),
            refused: false,
            error: format!("it ran and ended with {}", output.exit_code),
        },
        Err(error) => {
            Refusal { case: "exec of a command that the policy does not list".to_owned(), refused: true, error: error.to_string() }
        }
    };
    let timeline = world.timeline(&running.sandbox)?;
    let exit_code = cri.stop_and_remove(&running.container, 10).await?;
    cri.remove_sandbox(&running.sandbox).await?;

    world.say("the same pod, attacked in nine ways from outside");
    let mut refused = attack(world, &Case::ATTACKS).await?;
    refused.push(exec);
    let leftovers = baseline.leftovers(&[])?;
    Ok(DemoReport {
        schema: "kata-cc/demo-1",
        pod: PodReport { exit_code, output: explain_token(&output), attestations, layers_encrypted: world.layers_encrypted()? },
        refused,
        timeline,
        leftovers,
    })
}

/// A pod whose container runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

/// The kubelet's way: sandbox, image, container, start. What was made before a failure is removed again.
pub(crate) async fn start_pod(cri: &mut Cri, pod: &PodSpec) -> Result<Running> {
    let sandbox = cri.run_sandbox(pod).await.context("RunPodSandbox")?;
    match start_container(cri, pod, &sandbox).await {
        Ok(container) => Ok(Running { sandbox, container }),
        Err(error) => {
            cri.remove_sandbox(&sandbox).await.context("removing the sandbox after a failure")?;
            Err(error)
        }
    }
}

/// Pulls, creates and starts a pod's container in a sandbox that runs.
pub(crate) async fn start_container(cri: &mut Cri, pod: &PodSpec, sandbox: &str) -> Result<String> {
    cri.pull(pod).await.context("PullImage")?;
    let container = cri.create(sandbox, pod).await.context("CreateContainer")?;
    if let Err(error) = cri.start(&container).await.context("StartContainer") {
        cri.remove(&container).await.context("removing the container after a failure")?;
        return Err(error);
    }
    Ok(container)
}

/// Each case in its own pod, two at a time.
pub(crate) async fn attack(world: &World, cases: &[Case]) -> Result<Vec<Refusal>> {
    let slots = Arc::new(Semaphore::new(2));
    let mut tasks = Vec::new();
    for case in cases {
        let mut cri = world.cri().await?;
        let pod = world.pod(&case.recipe())?;
        let slots = Arc::clone(&slots);
        let title = case.title.to_owned();
        tasks.push(tokio::spawn(async move {
            let _slot = slots.acquire_owned().await?;
            let outcome = match start_pod(&mut cri, &pod).await {
                Ok(running) => {
                    let log = cri.log_text(&pod);
                    cri.stop_and_remove(&running.container, 1).await?;
                    cri.remove_sandbox(&running.sandbox).await?;
                    Refusal { case: title, refused: false, error: format!("the pod ran; it printed {log:?}") }
                }
                Err(error) => Refusal { case: title, refused: true, error: format!("{error:#}") },
            };
            Ok::<Refusal, anyhow::Error>(outcome)
        }));
    }
    let mut outcomes = Vec::new();
    for (task, case) in tasks.into_iter().zip(cases) {
        let mut outcome = task.await??;
        // A refusal for another reason than the attack is a failure of the product (or of the lab), not a success.
        if outcome.refused && !case.expect.iter().all(|word| outcome.error.contains(word)) {
            outcome.refused = false;
            outcome.error = format!("refused, but not for the reason expected (one that says {:?}): {}", case.expect, outcome.error);
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Puts the token's trust claims in words after the line in which the workload printed them as base64url.
fn explain_token(output: &str) -> String {
    use base64::Engine;
    let mut text = String::new();
    for line in output.lines() {
        match line.strip_prefix("token claims: ") {
            Some(encoded) => {
                let decoded = base64::engine::general_purpose::URL_SAFE_NO_PAD
                    .decode(encoded.trim_end_matches('='))
                    .ok()
                    .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
                match decoded {
                    Some(claims) => {
                        let cpu = &claims["submods"]["cpu0"];
                        text.push_str(&format!(
                            "token claims: ear.status {}, trustworthiness {}\n",
                            cpu["ear.status"], cpu["ear.trustworthiness-vector"]
                        ));
                    }
                    None => text.push_str("token claims: not a token\n"),
                }
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}
