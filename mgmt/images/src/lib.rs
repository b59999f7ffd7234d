//! Builds, imports and keeps guest images
