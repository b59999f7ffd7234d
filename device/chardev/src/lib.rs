//! Character back ends: stdio, pty, socket, log file
