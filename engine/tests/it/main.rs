//! The engine from outside, and the rules that hold over the whole workspace.

mod layering;
