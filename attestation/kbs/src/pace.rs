//! Whether work lately took so little time that going to another thread for it would take longer.
//!
//! Work on a thread that serves others holds them up, so what once took long is not taken for quick for a while: whoever can make it take long now and
//! then gains little by it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What takes longer is not done where others wait.
const QUICK: Duration = Duration::from_millis(2);
/// So many times after that it is not either.
const WARY: u32 = 100;

/// The pace of one kind of work.
#[derive(Debug)]
pub(crate) struct Pace {
    /// How many more times it is not taken for quick.
    wary: AtomicU32,
}

impl Default for Pace {
    /// Of work that has not been done yet: nobody knows how long it takes.
    fn default() -> Self {
        Self { wary: AtomicU32::new(1) }
    }
}

impl Pace {
    /// Whether it is taken for quick.
    pub(crate) fn is_quick(&self) -> bool {
        self.wary.load(Ordering::Relaxed) == 0
    }

    /// Does the work, and looks at how long it takes.
    pub(crate) fn of<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.took(start.elapsed());
        done
    }

    fn took(&self, time: Duration) {
        let next = |wary: u32| Some(if time > QUICK { WARY } else { wary.saturating_sub(1) });
        // Always gives a next value, so never fails.
        let _ = self.wary.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_once_is_not_taken_for_quick_for_a_while() {
        let pace = Pace::default();
        assert!(!pace.is_quick(), "never done");
        assert_eq!(pace.of(|| 7), 7);
        pace.took(QUICK);
        assert!(pace.is_quick());
        pace.took(QUICK * 2);
        (1..WARY).for_each(|_| pace.took(Duration::ZERO));
        assert!(!pace.is_quick());
        pace.took(Duration::ZERO);
        assert!(pace.is_quick());
        pace.of(|| std::thread::sleep(QUICK * 2));
        assert!(!pace.is_quick());
    }
}
