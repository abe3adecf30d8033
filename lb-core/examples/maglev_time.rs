//! How long a Maglev table takes to build: `cargo run --release -p lb-core --example maglev_time`.

use std::{hint::black_box, time::Instant};

use lb_core::maglev::{Member, build};

/// Configured backends, and how many of them are live.
const CASES: [(usize, usize); 9] =
    [(3, 3), (3, 2), (16, 16), (16, 8), (16, 1), (1024, 1024), (1024, 512), (1024, 2), (1024, 1)];

fn main() {
    for (configured, live) in CASES {
        let keys: Vec<String> =
            (0..configured).map(|i| format!("10.0.{}.{}:2379", i / 200, 10 + i % 200)).collect();
        let members: Vec<Member<'_>> = keys
            .iter()
            .enumerate()
            .map(|(i, key)| Member { key: key.as_bytes(), weight: 1, live: i < live })
            .collect();
        let best = (0..5)
            .map(|_| {
                let start = Instant::now();
                black_box(build(black_box(&members)));
                start.elapsed()
            })
            .min()
            .unwrap_or_default();
        println!("{configured:4} backends, {live:4} live: {best:?}");
    }
}
