//! How often one address may open a session: a token bucket each, in a table that does not grow.
//!
//! `/auth` is open to everybody and makes the broker remember something, so this is where a flood is stopped first. An IPv6 peer is
//! known by its /64, of which one machine has all addresses.
//!
//! **Invariant:** no more than [`MAX_ADDRESSES`] buckets are held; when none is free, newcomers share one. **Invariant:** clocks are
//! passed in.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that are told apart.
pub const MAX_ADDRESSES: usize = 16_384;
/// A full bucket is a forgotten one; the table is looked through for them at most this often.
const SWEEP: Duration = Duration::from_secs(1);

/// How much is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: u32,
    /// Tokens a bucket holds: what may come at once.
    pub burst: u32,
}

impl Default for Rate {
    /// A node that starts 200 pods at once, and 20 more each second.
    fn default() -> Self {
        Self { per_second: 20, burst: 200 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a token.
    level: u64,
    filled_at: Instant,
}

/// The buckets.
#[derive(Debug)]
pub struct RateLimit {
    rate: Rate,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    buckets: HashMap<IpAddr, Bucket>,
    /// For those the table has no room for.
    shared: Option<Bucket>,
    swept_at: Option<Instant>,
}

impl RateLimit {
    /// With this rate for each address.
    pub fn new(rate: Rate) -> Self {
        Self { rate, table: Mutex::default() }
    }

    /// Takes a token, or says after how long there is one again.
    pub fn take(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let address = network(address);
        let full = Bucket { level: u64::from(self.rate.burst) * 1000, filled_at: now };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.buckets.len() >= MAX_ADDRESSES && !table.buckets.contains_key(&address) {
            table.sweep(self.rate, now);
        }
        let bucket = if table.buckets.len() < MAX_ADDRESSES || table.buckets.contains_key(&address) {
            table.buckets.entry(address).or_insert(full)
        } else {
            table.shared.get_or_insert(full)
        };
        bucket.fill(self.rate, now);
        match bucket.level.checked_sub(1000) {
            Some(left) => {
                bucket.level = left;
                Ok(())
            }
            None => Err(Duration::from_millis((1000 - bucket.level) / u64::from(self.rate.per_second.max(1)) + 1)),
        }
    }
}

impl Bucket {
    fn fill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        let gained = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(u64::from(rate.per_second));
        // Less than a thousandth: leave the time where it is, or a fast caller would never gain anything.
        if gained > 0 {
            self.level = self.level.saturating_add(gained).min(u64::from(rate.burst) * 1000);
            self.filled_at = now;
        }
    }
}

impl Table {
    fn sweep(&mut self, rate: Rate, now: Instant) {
        if self.swept_at.is_some_and(|at| now.saturating_duration_since(at) < SWEEP) {
            return;
        }
        self.swept_at = Some(now);
        self.buckets.retain(|_, bucket| {
            bucket.fill(rate, now);
            bucket.level < u64::from(rate.burst) * 1000
        });
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (limit, start) = (RateLimit::new(RATE), Instant::now());
        for _ in 0..3 {
            assert_eq!(limit.take(v4(1), start), Ok(()));
        }
        let wait = limit.take(v4(1), start).unwrap_err();
        assert!(wait > Duration::from_millis(90) && wait <= Duration::from_millis(101), "{wait:?}");
        assert_eq!(limit.take(v4(2), start), Ok(()), "another address has its own");
        assert_eq!(limit.take(v4(1), start + wait), Ok(()));
        assert!(limit.take(v4(1), start + wait).is_err());
    }

    #[test]
    fn a_long_pause_gives_a_burst_and_no_more() {
        let (limit, start) = (RateLimit::new(RATE), Instant::now());
        limit.take(v4(1), start).unwrap();
        let later = start + Duration::from_secs(3600);
        let passed = (0..10).filter(|_| limit.take(v4(1), later).is_ok()).count();
        assert_eq!(passed, 3);
    }

    #[test]
    fn one_machine_with_a_whole_ipv6_network_is_one_peer() {
        let (limit, now) = (RateLimit::new(RATE), Instant::now());
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        for last in 1..=3 {
            assert!(limit.take(of(&format!("2001:db8::{last}")), now).is_ok());
        }
        assert!(limit.take(of("2001:db8::ffff"), now).is_err());
        assert!(limit.take(of("2001:db8:0:1::1"), now).is_ok());
        for _ in 0..3 {
            assert!(limit.take(of("::ffff:192.0.2.1"), now).is_ok());
        }
        assert!(limit.take(of("192.0.2.1"), now).is_err(), "a mapped address is its IPv4 address");
    }

    #[test]
    fn the_table_does_not_grow_and_old_peers_are_not_forgotten_under_a_flood() {
        let (limit, now) = (RateLimit::new(RATE), Instant::now());
        for n in 0..(MAX_ADDRESSES as u32 + 1000) {
            let _ = limit.take(v4(n), now);
        }
        assert_eq!(limit.table.lock().unwrap().buckets.len(), MAX_ADDRESSES);
        assert!(limit.take(v4(u32::MAX), now).is_err(), "newcomers share what is left");
        assert!(limit.take(v4(5), now).is_ok(), "who was there has its own bucket");
        let later = now + Duration::from_secs(10);
        assert!(limit.take(v4(u32::MAX), later).is_ok());
        assert_eq!(limit.table.lock().unwrap().buckets.len(), 1, "full buckets are forgotten");
    }
}
