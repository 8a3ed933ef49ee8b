//! The program, as operators run it.

mod commands;
mod limits;
mod mistakes;
mod program;
