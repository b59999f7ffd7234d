//! Shows long work on the terminal: a moving line where there is one, plain lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use images::{Progress, Unit};
use indicatif::{ProgressBar, ProgressStyle};

/// Progress on standard error.
pub enum Show {
    /// On a terminal.
    Bar { bar: ProgressBar, step: String, begun: Instant },
    /// In a log: each step on a line of its own.
    Lines,
}

impl Show {
    /// Shows progress in the way that standard error allows.
    pub fn new() -> Show {
        if !stderr().is_terminal() {
            return Show::Lines;
        }
        let bar = ProgressBar::no_length().with_style(style("{spinner} {msg}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Show::Bar { bar, step: String::new(), begun: Instant::now() }
    }

    fn finish_step(&mut self) {
        if let Show::Bar { bar, step, begun } = self
            && !step.is_empty()
        {
            let seconds = begun.elapsed().as_secs_f64();
            // Steps that nobody noticed need no line of their own.
            if seconds >= 0.2 {
                bar.println(format!("  {step} ({seconds:.1} s)"));
            }
            step.clear();
        }
    }
}

impl Progress for Show {
    fn step(&mut self, what: &str) {
        self.finish_step();
        match self {
            Show::Bar { bar, step, begun } => {
                what.clone_into(step);
                *begun = Instant::now();
                bar.unset_length();
                bar.set_style(style("{spinner} {msg}"));
                bar.set_message(what.to_owned());
            }
            Show::Lines => eprintln!("{what}"),
        }
    }

    fn advance(&mut self, done: u64, total: u64, unit: Unit) {
        let Show::Bar { bar, .. } = self else { return };
        if bar.length() != Some(total) {
            bar.set_length(total);
            bar.set_style(style(match unit {
                Unit::Bytes => "{spinner} {msg} {bar:30} {bytes}/{total_bytes}",
                Unit::Packages => "{spinner} {msg} {bar:30} {percent}%",
            }));
        }
        bar.set_position(done);
    }

    fn note(&mut self, text: &str) {
        match self {
            Show::Bar { bar, .. } => bar.println(format!("  {text}")),
            Show::Lines => eprintln!("{text}"),
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.finish_step();
        if let Show::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; one that is wrong shows the plain style.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_good() {
        for template in [
            "{spinner} {msg}",
            "{spinner} {msg} {bar:30} {bytes}/{total_bytes}",
            "{spinner} {msg} {bar:30} {percent}%",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
