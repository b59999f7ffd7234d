//! A guest that means harm.
