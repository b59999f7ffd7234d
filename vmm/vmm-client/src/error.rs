//! Why a VMM could not be asked.

use std::io;

use vmm_api::{Failure, FailureKind};

/// Why a VMM has not answered as it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It answered that it cannot do this, or not now.
    #[error("{0}")]
    Refused(#[from] Failure),
    /// The connection ended before the answer: the guest has.
    #[error("it ended before it answered")]
    Gone,
    /// No answer came.
    #[error("its lodge-vmm does not answer: it is stopped, or this host is very busy")]
    Late,
    /// It has as many clients as it serves.
    #[error("too many programs ask it at once; try again")]
    Busy,
    /// What came is no answer of this version of the API.
    #[error("it answers in another language ({0}): it runs on another version of lodge")]
    Language(String),
    /// The system refused something.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// The same for a person who asked about the guest `name`.
    #[must_use]
    pub fn about(self, name: &str) -> Failure {
        match self {
            // A refusal says all there is to say; only that it is not wrong as such, as a
            // configuration would be, is told by its kind.
            Error::Refused(Failure { kind, message }) => {
                Failure::new(kind, format!("the guest {name}: {message}"))
            }
            error => Failure::new(
                FailureKind::Host,
                format!("the guest {name} cannot be asked: {error}"),
            ),
        }
    }
}

impl From<hyper::Error> for Error {
    fn from(error: hyper::Error) -> Error {
        if error.is_parse() {
            return Error::Language(error.to_string());
        }
        Error::Gone
    }
}
