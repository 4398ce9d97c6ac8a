//! Whole lives of an agent, chosen by strings of bytes, in a world made of values.
//!
//! `tests/simulation/history.rs` is what happens, `oracle.rs` what must hold after every step.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]
#![allow(clippy::cast_possible_truncation, reason = "choices are small")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

mod bytes;
mod database;
mod disk;
mod excused;
mod flows;
mod history;
mod host;
mod mutations;
mod oracle;
mod out;
mod plain;
mod reach;
#[path = "../support/rows.rs"]
mod rows;
mod search;
mod tables;
mod wanted;
mod work;
mod world;

/// So many histories are tried in each run, the same each time.
const HISTORIES: u64 = 8_000;

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Lives through the histories of these numbers until `end`.
fn live_through(seed: u64, count: u64, end: Option<Instant>) -> u64 {
    let (next, threads) =
        (AtomicU64::new(0), thread::available_parallelism().map_or(1, usize::from));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while end.is_none_or(|end| Instant::now() < end) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let bytes = search::scenario(seed, number);
                    if search::failure(&bytes).is_some() {
                        search::report(&bytes);
                    }
                }
            });
        }
    });
    next.into_inner().min(count)
}

/// `GATEPOST_SIMULATE_SECS` tries new histories for so long instead.
#[test]
fn every_history_keeps_the_promises_and_ends_well() {
    let began = Instant::now();
    let tried = match number_of("GATEPOST_SIMULATE_SECS") {
        Some(secs) => {
            let seed = fastrand::u64(..);
            println!("seed {seed}");
            live_through(seed, u64::MAX, Some(began + Duration::from_secs(secs)))
        }
        None => live_through(1, number_of("GATEPOST_HISTORIES").unwrap_or(HISTORIES), None),
    };
    println!("{tried} histories in {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn every_history_that_once_failed_keeps_the_promises_now() {
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/simulation/kept");
    let mut files: Vec<_> = std::fs::read_dir(kept).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let bytes = search::parse(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(search::failure(&bytes), None, "{}", file.display());
    }
}

/// Those that a fuzzer chose, because each reaches code that the others do not.
#[test]
fn every_history_of_the_corpus_keeps_the_promises() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/simulation/corpus");
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(files.len() > 100, "{} files", files.len());
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let bytes = std::fs::read(file).unwrap();
                    if search::failure(&bytes).is_some() {
                        search::report(&bytes);
                    }
                }
            });
        }
    });
}

/// A simulation of which some part never happens finds nothing there.
#[test]
fn histories_are_full_of_events() {
    let mut all = history::Figures::default();
    for number in 0..200 {
        let figures = history::live(&search::scenario(7, number), false).figures;
        all.add(figures);
    }
    let history::Figures { events, steps, proofs, refused, looks, notes } = all;
    assert!(events > 20_000 && steps > 3_000 && proofs > 2_000, "{all:?}");
    assert!(refused > 50 && looks > 2_000 && notes > 500, "{all:?}");
}
