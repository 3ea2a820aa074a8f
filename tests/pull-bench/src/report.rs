//! What was measured, for people and for programs, and which budget is met.

use std::fmt;

use serde::Serialize;

use crate::contender::Contender;
use crate::images::{Case, Image};
use crate::measure::Sample;

/// Largest share of containerd's wall time for the plain image, on several layers and on one.
const OF_CONTAINERD: (f64, f64) = (0.4, 0.45);
/// Largest share of the pipeline's wall time, which checks nothing.
const OF_PIPELINE: f64 = 1.0;
/// Largest share of the plain image's wall time that the encrypted one may take.
const OF_PLAIN: f64 = 1.15;
/// Largest resident memory, in MiB.
const PEAK_MIB: f64 = 64.0;

/// The whole.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    cores: usize,
    runs: u16,
    images: Vec<Image>,
    entries: Vec<Entry>,
    budgets: Vec<Budget>,
}

/// One contender with one image.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// The image.
    pub(crate) case: Case,
    /// Who pulled it.
    pub(crate) contender: Contender,
    /// Every run.
    pub(crate) samples: Vec<Sample>,
    /// Why there are no more.
    pub(crate) failure: Option<String>,
}

impl Entry {
    /// Nothing measured yet.
    pub(crate) fn new(case: Case, contender: Contender, cannot: Option<&str>) -> Self {
        Self { case, contender, samples: Vec::new(), failure: cannot.map(str::to_owned) }
    }

    fn spread(&self, of: impl Fn(&Sample) -> f64) -> Option<Spread> {
        let mut values: Vec<f64> = self.samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Spread { min, median, max })
    }

    fn wall(&self) -> Option<f64> {
        // Half of a contender's runs say nothing about it.
        self.failure.is_none().then(|| self.spread(|s| s.wall_s)).flatten().map(|s| s.median)
    }
}

struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

/// Something that was to be held.
#[derive(Debug, Serialize)]
struct Budget {
    what: String,
    limit: f64,
    /// Absent where it was not measured.
    found: Option<f64>,
    met: Option<bool>,
}

impl Budget {
    fn new(what: String, limit: f64, found: Option<f64>) -> Self {
        Self { what, limit, found, met: found.map(|found| found <= limit) }
    }
}

fn budgets(entries: &[Entry]) -> Vec<Budget> {
    let find = |case, contender| entries.iter().find(|e| e.case == case && e.contender == contender);
    let wall = |case, contender| find(case, contender).and_then(Entry::wall);
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let mut budgets = Vec::new();
    let cases = Case::ALL.iter().copied().filter(|case| find(*case, Contender::Ours).is_some());
    for case in cases {
        let ours = wall(case, Contender::Ours);
        let limit = if case.is_one_layer() { OF_CONTAINERD.1 } else { OF_CONTAINERD.0 };
        let plain = if case == Case::Encrypted { Case::Several } else { case };
        budgets.push(Budget::new(format!("{case}: ours ÷ containerd"), limit, ratio(ours, wall(plain, Contender::Containerd))));
        if plain != Case::Zstd {
            let found = ratio(ours, wall(plain, Contender::ContainerdUnpigz));
            budgets.push(Budget::new(format!("{case}: ours ÷ containerd with unpigz"), limit, found));
        }
        if case == Case::Encrypted {
            budgets.push(Budget::new(
                format!("{case}: ours ÷ ours of the plain image"),
                OF_PLAIN,
                ratio(ours, wall(plain, Contender::Ours)),
            ));
        } else {
            budgets.push(Budget::new(format!("{case}: ours ÷ pipeline"), OF_PIPELINE, ratio(ours, wall(case, Contender::Pipeline))));
        }
        let peak = find(case, Contender::Ours).and_then(|e| e.spread(|s| s.peak_kib as f64 / 1024.0)).map(|s| s.max);
        budgets.push(Budget::new(format!("{case}: ours, MiB at most"), PEAK_MIB, peak));
    }
    budgets
}

impl Report {
    /// Of what was measured.
    pub(crate) fn new(runs: u16, images: Vec<Image>, entries: Vec<Entry>) -> Self {
        let budgets = budgets(&entries);
        Self { schema: "kata-cc/bench-pull-1", cores: crate::measure::cores(), runs, images, entries, budgets }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "pull and unpack, {} cores shared with the registry, a new ext4 each, runs: {}; median (min–max)",
            self.cores, self.runs
        )?;
        for image in &self.images {
            let mb = |bytes: u64| bytes as f64 / 1e6;
            writeln!(
                f,
                "case {}: layers: {}, {:.0} MB, unpacked {:.0} MB (ratio {:.2}), {} files",
                image.case,
                image.layers.len(),
                mb(image.compressed),
                mb(image.unpacked),
                image.unpacked as f64 / image.compressed as f64,
                image.files
            )?;
            for entry in self.entries.iter().filter(|entry| entry.case == image.case) {
                write!(f, "  {:<20}", entry.contender.name())?;
                if let Some(failure) = &entry.failure {
                    writeln!(f, " NOT TO BE HAD: {failure}")?;
                    continue;
                }
                for (of, unit) in [(0, "s"), (1, "s CPU"), (2, "MiB")] {
                    let spread = entry.spread(|s| match of {
                        0 => s.wall_s,
                        1 => s.cpu_s,
                        _ => s.peak_kib as f64 / 1024.0,
                    });
                    if let Some(Spread { min, median, max }) = spread {
                        let digits = if of == 2 { 0 } else { 2 };
                        write!(f, " {median:>7.digits$} {unit} ({min:.digits$}–{max:.digits$})")?;
                    }
                }
                writeln!(f)?;
            }
        }
        writeln!(f, "budgets")?;
        for budget in &self.budgets {
            let verdict = match budget.met {
                Some(true) => "met",
                Some(false) => "NOT MET",
                None => "not measured",
            };
            let found = budget.found.map_or_else(|| "–".to_owned(), |found| format!("{found:.2}"));
            writeln!(f, "  {:<42} {found:>7}, at most {:<5} {verdict}", budget.what, budget.limit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(case: Case, contender: Contender, walls: &[f64]) -> Entry {
        let samples = walls.iter().map(|&wall_s| Sample { wall_s, cpu_s: 1.0, peak_kib: 1024 });
        Entry { case, contender, samples: samples.collect(), failure: None }
    }

    #[track_caller]
    fn verdict(entries: &[Entry], what: &str) -> Option<bool> {
        budgets(entries).into_iter().find(|b| b.what == what).unwrap().met
    }

    #[test]
    fn a_budget_is_met_by_the_medians_and_open_where_a_contender_is_missing() {
        let mut entries =
            vec![entry(Case::One, Contender::Ours, &[9.0, 1.0, 2.0]), entry(Case::One, Contender::Containerd, &[4.0, 5.0, 6.0])];
        assert_eq!(verdict(&entries, "one: ours ÷ containerd"), Some(true));
        assert_eq!(verdict(&entries, "one: ours ÷ pipeline"), None);
        entries[0].samples[1].wall_s = 2.5;
        assert_eq!(verdict(&entries, "one: ours ÷ containerd"), Some(false));
        entries[1].failure = Some("broke".to_owned());
        assert_eq!(verdict(&entries, "one: ours ÷ containerd"), None);
    }

    #[test]
    fn the_encrypted_image_is_held_against_the_plain_one() {
        let entries = [
            entry(Case::Encrypted, Contender::Ours, &[1.2]),
            entry(Case::Several, Contender::Ours, &[1.0]),
            entry(Case::Several, Contender::Containerd, &[4.0]),
        ];
        assert_eq!(verdict(&entries, "encrypted: ours ÷ ours of the plain image"), Some(false));
        assert_eq!(verdict(&entries, "encrypted: ours ÷ containerd"), Some(true));
    }
}
