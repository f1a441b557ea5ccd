//! Side-by-side measurements: ratios within one run, never asserted. Each is a program in `benches/`.
