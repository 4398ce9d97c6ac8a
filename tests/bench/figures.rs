//! Times, and what is said of many of them. Shared by the benchmarks.
#![allow(dead_code, reason = "each benchmark uses a part")]

use std::time::{Duration, Instant};

pub fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

pub fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// The smallest of the times that this many percent of them do not exceed.
pub fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

pub fn median(times: &[Duration]) -> Duration {
    quantile(times, 50)
}

/// What a figure must reach.
pub enum Bar {
    None,
    /// At most so many times the raw tool's.
    Ratio(f64),
    /// Anything else, in words, and whether it was reached.
    Other(&'static str, bool),
}

/// One line of the tables in docs/scale.md.
pub struct Row<'a> {
    pub what: &'a str,
    pub size: String,
    pub ours: String,
    /// The raw tool's figure in the same run, and which tool; empty where there is none.
    pub beside: String,
    pub ratio: Option<f64>,
    pub bar: Bar,
}

impl Row<'_> {
    /// Prints it as a line of a Markdown table, under the heading that [`heading`] prints.
    pub fn print(&self) {
        let Self { what, size, ours, beside, ratio, bar } = self;
        let times = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} x"));
        let (wanted, met) = match bar {
            Bar::None => (String::new(), None),
            Bar::Ratio(most) => (format!("<= {most} x"), ratio.map(|ratio| ratio <= *most)),
            Bar::Other(words, met) => ((*words).to_owned(), Some(*met)),
        };
        let met = met.map_or("", |met| if met { "yes" } else { "**no**" });
        println!("| {what} | {size} | {ours} | {beside} | {times} | {wanted} | {met} |");
    }
}

pub fn heading() {
    println!("| what | size | ours | beside | ratio | bar | met |");
    println!("|---|---|---|---|---|---|---|");
}

/// With the unit that suits it.
pub fn words(took: Duration) -> String {
    let secs = took.as_secs_f64();
    if secs < 1.0 { format!("{:.2} ms", secs * 1e3) } else { format!("{secs:.2} s") }
}

/// 100000 as 100,000.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
