//! Part of Estiba.

fn main() {}
