//! 16550A serial port
