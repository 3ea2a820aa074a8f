//! A container's control group (version 2): figures, limits, freezing, and the one kill that nothing escapes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::PathBuf;

use kata_cc_agent_protocol::rpc::{agent, oci, protobuf::MessageField};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::ContainerId;
use crate::descriptor::watched;
use crate::init::cgroup::{CONTAINERS, ROOT};

/// How many groups beneath a container's are looked at.
const MAX_GROUPS: usize = 1024;

/// The group of one container.
#[derive(Debug, Clone)]
pub(crate) struct Group(PathBuf);

impl Group {
    /// The group of a container of that name.
    #[must_use]
    pub(crate) fn of(id: &ContainerId) -> Self {
        Self(PathBuf::from(ROOT).join(CONTAINERS).join(id.as_str()))
    }

    #[cfg(test)]
    pub(crate) fn at(path: &std::path::Path) -> Self {
        Self(path.to_owned())
    }

    /// Whether it has this number: of the directory, which is the kernel's own for the group.
    #[must_use]
    pub(crate) fn is(&self, number: u64) -> bool {
        fs::symlink_metadata(&self.0).is_ok_and(|group| group.is_dir() && group.ino() == number)
    }

    /// Whether a group beneath it has this number. A container can make such groups if it has control groups that it may write to.
    #[must_use]
    pub(crate) fn holds(&self, number: u64) -> bool {
        let mut todo = vec![self.0.clone()];
        let mut seen = 0;
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                // The entry's own kind, which for a link is a link.
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if entry.ino() == number {
                    return true;
                }
                seen += 1;
                if seen > MAX_GROUPS {
                    return false;
                }
                todo.push(entry.path());
            }
        }
        false
    }

    /// A file of the group.
    #[must_use]
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.file(name))
    }

    /// Kills everything in the group, forks under way included. A group that is gone has nothing in it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match fs::write(self.file("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Stops all of its processes, or lets them go on, and waits until that is so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn freeze(&self, frozen: bool) -> io::Result<()> {
        let state = if frozen { "frozen 1" } else { "frozen 0" };
        // Watched before it is asked for, so that the change cannot be missed.
        let changes = Changes::of(&self.file("cgroup.events"))?;
        fs::write(self.file("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        while !self.read("cgroup.events")?.lines().any(|line| line == state) {
            changes.next().await?;
        }
        Ok(())
    }

    /// Sets the limits that are given. Zero means that there is nothing to set.
    ///
    /// # Errors
    /// When the kernel refuses a value.
    pub(crate) fn update(&self, resources: &oci::LinuxResources) -> io::Result<()> {
        let set = |name: &str, value: String| fs::write(self.file(name), value);
        if let Some(memory) = resources.Memory.as_ref()
            && memory.Limit != 0
        {
            set("memory.max", limit(memory.Limit))?;
        }
        if let Some(cpu) = resources.CPU.as_ref() {
            if cpu.Shares != 0 {
                set("cpu.weight", weight(cpu.Shares).to_string())?;
            }
            if cpu.Quota != 0 {
                let period = if cpu.Period == 0 { 100_000 } else { cpu.Period };
                set("cpu.max", format!("{} {period}", limit(cpu.Quota)))?;
            }
        }
        if let Some(pids) = resources.Pids.as_ref()
            && pids.Limit != 0
        {
            set("pids.max", limit(pids.Limit))?;
        }
        Ok(())
    }

    /// How often something in the group was killed for want of memory.
    ///
    /// # Errors
    /// When the group is gone.
    pub(crate) fn oom_kills(&self) -> io::Result<u64> {
        Ok(value(&fields(&self.read("memory.events")?), "oom_kill"))
    }

    /// Figures, in the protocol's form. What a controller does not offer is zero.
    ///
    /// # Errors
    /// When the group is gone.
    pub(crate) fn stats(&self) -> io::Result<agent::CgroupStats> {
        let cpu = fields(&self.read("cpu.stat")?);
        let memory = fields(&self.read("memory.stat").unwrap_or_default());
        let number = |name: &str| self.read(name).ok().and_then(|text| parse_limit(text.trim())).unwrap_or_default();
        let events = fields(&self.read("memory.events").unwrap_or_default());
        // The kernel counts in microseconds, the protocol in nanoseconds.
        let nanoseconds = |name| value(&cpu, name).saturating_mul(1000);
        let usage = agent::CpuUsage {
            total_usage: nanoseconds("usage_usec"),
            usage_in_kernelmode: nanoseconds("system_usec"),
            usage_in_usermode: nanoseconds("user_usec"),
            ..Default::default()
        };
        let throttling = agent::ThrottlingData {
            periods: value(&cpu, "nr_periods"),
            throttled_periods: value(&cpu, "nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
            ..Default::default()
        };
        Ok(agent::CgroupStats {
            cpu_stats: MessageField::some(agent::CpuStats {
                cpu_usage: MessageField::some(usage),
                throttling_data: MessageField::some(throttling),
                ..Default::default()
            }),
            memory_stats: MessageField::some(agent::MemoryStats {
                cache: value(&memory, "file"),
                usage: MessageField::some(agent::MemoryData {
                    usage: number("memory.current"),
                    max_usage: number("memory.peak"),
                    failcnt: value(&events, "max"),
                    limit: number("memory.max"),
                    ..Default::default()
                }),
                use_hierarchy: true,
                stats: memory,
                ..Default::default()
            }),
            pids_stats: MessageField::some(agent::PidsStats {
                current: number("pids.current"),
                limit: number("pids.max"),
                ..Default::default()
            }),
            ..Default::default()
        })
    }
}

/// Changes of a file of a control group, as they happen.
pub(crate) struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// Watches a file.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn of(file: &std::path::Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(file, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF)?;
        Ok(Self(watched(inotify.into(), Interest::READABLE)?))
    }

    /// Waits for the next change.
    ///
    /// # Errors
    /// When watching fails.
    pub(crate) async fn next(&self) -> io::Result<()> {
        self.0
            .async_io(Interest::READABLE, |inotify| {
                // Which event it was does not matter: the file says how things are now.
                nix::unistd::read(inotify, &mut [0; 4096])?;
                Ok(())
            })
            .await
    }
}

fn fields(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

fn value(fields: &BTreeMap<String, u64>, name: &str) -> u64 {
    fields.get(name).copied().unwrap_or_default()
}

/// A limit as the kernel writes it; no limit is the largest number, as in version 1.
fn parse_limit(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

fn limit(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// Shares of version 1 (2 to 262144) as weight of version 2 (1 to 10000), by the formula the OCI runtimes agree on.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 2\n");
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 1\nfile 2048\n");
        write("memory.events", "low 0\nmax 5\noom 1\noom_kill 1\n");
        write("pids.current", "3\n");
        let group = Group::at(directory.path());
        let stats = group.stats().unwrap();
        assert_eq!(stats.cpu_stats.cpu_usage.total_usage, 7000);
        assert_eq!(stats.cpu_stats.throttling_data.periods, 2);
        assert_eq!(stats.memory_stats.usage.usage, 4096);
        assert_eq!(stats.memory_stats.usage.limit, u64::MAX);
        assert_eq!(stats.memory_stats.cache, 2048);
        assert_eq!(stats.memory_stats.usage.failcnt, 5);
        assert_eq!(stats.pids_stats.current, 3);
        assert_eq!(group.oom_kills().unwrap(), 1);
    }

    #[test]
    fn a_group_that_is_gone_has_no_figures_and_nothing_to_kill() {
        let group = Group::at(std::path::Path::new("/no/such/group"));
        assert!(group.stats().is_err());
        group.kill().unwrap();
    }

    #[test]
    fn limits_are_written_in_the_form_of_version_2() {
        let directory = tempfile::tempdir().unwrap();
        let resources = oci::LinuxResources {
            CPU: MessageField::some(oci::LinuxCPU { Shares: 1024, Quota: -1, ..Default::default() }),
            Memory: MessageField::some(oci::LinuxMemory { Limit: 4096, ..Default::default() }),
            ..Default::default()
        };
        Group::at(directory.path()).update(&resources).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("cpu.max"), "max 100000");
        assert_eq!(read("memory.max"), "4096");
        assert!(!directory.path().join("pids.max").exists());
    }

    #[test]
    fn weights_span_the_whole_range() {
        assert_eq!([2, 1024, 262_144, 0].map(weight), [1, 39, 10_000, 1]);
    }

    #[tokio::test]
    async fn changes_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("events");
        fs::write(&file, "a").unwrap();
        let changes = Changes::of(&file).unwrap();
        fs::write(&file, "b").unwrap();
        changes.next().await.unwrap();
    }
}
