//! The traits between a VMM and what runs its guest processors
