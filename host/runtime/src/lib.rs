//! Clock, timers and event loop of a VMM process
