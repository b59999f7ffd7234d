//! A folder as its client sees it: requests as a guest's kernel sends them, and as nobody does.

mod attributes;
mod directories;
mod driver;
mod escapes;
mod files;
mod hostile;
mod limits;
mod saved;
