//! Files that change while the broker runs: looked at now and then, and when the operator says so.

use crate::server::error::causes;
use std::time::Duration;
use tokio::signal::unix::Signal;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Reads anew when what `seen` says has changed or `nudge` says so, for ever. Where that fails, what there was stays; `what` names it in the log.
pub(crate) async fn follow<S: PartialEq, E: std::error::Error>(
    what: &'static str,
    mut nudge: Signal,
    seen: impl Fn() -> S,
    read: impl Fn() -> Result<(), E>,
) {
    let mut last = seen();
    loop {
        let asked = tokio::select! {
            _ = nudge.recv() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        let now = seen();
        if !asked && now == last {
            continue;
        }
        match read() {
            Ok(()) => {
                last = now;
                tracing::info!("{what} were read again");
            }
            // Also while one file is new and the other not yet: the next look finds both, since `last` is still the old state.
            Err(error) => tracing::error!(error = %causes(&error), "{what} stay as they were"),
        }
    }
}
