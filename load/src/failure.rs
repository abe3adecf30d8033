//! Why a request or a connection failed: a kind to count by, and words.

use std::{error::Error, io};

use tonic::{Code, Status};

/// Longest text of a failure, in letters.
const LONGEST_TEXT: usize = 300;

/// What failures are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No answer in time.
    Timeout,
    /// The port is closed: a SYN was answered by a RST.
    Refused,
    /// The connection was reset.
    Reset,
    /// The other end closed the connection in order.
    Closed,
    /// The network says that there is no way.
    Unreachable,
    /// The generator itself gave the connection up: nothing came by it while a request waited for as long as requests may.
    Silent,
    /// Another error of the operating system.
    System,
    /// TLS: a certificate or a handshake is refused.
    Tls,
    /// What the other end sent is not HTTP/2, or breaks its rules.
    Protocol,
    /// Not sent: as many requests as may be were waiting already.
    Backlog,
    /// An answer came, and contradicts what was written or read before.
    Wrong,
    /// etcd answered with this status.
    Grpc(Code),
}

impl Kind {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::System => "system",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Backlog => "backlog",
            Self::Wrong => "wrong",
            Self::Grpc(code) => grpc_name(code),
        }
    }
}

fn grpc_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "grpc_ok",
        Code::Cancelled => "grpc_cancelled",
        Code::Unknown => "grpc_unknown",
        Code::InvalidArgument => "grpc_invalid_argument",
        Code::DeadlineExceeded => "grpc_deadline_exceeded",
        Code::NotFound => "grpc_not_found",
        Code::AlreadyExists => "grpc_already_exists",
        Code::PermissionDenied => "grpc_permission_denied",
        Code::ResourceExhausted => "grpc_resource_exhausted",
        Code::FailedPrecondition => "grpc_failed_precondition",
        Code::Aborted => "grpc_aborted",
        Code::OutOfRange => "grpc_out_of_range",
        Code::Unimplemented => "grpc_unimplemented",
        Code::Internal => "grpc_internal",
        Code::Unavailable => "grpc_unavailable",
        Code::DataLoss => "grpc_data_loss",
        Code::Unauthenticated => "grpc_unauthenticated",
    }
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it is counted by.
    pub kind: Kind,
    /// What happened, in words.
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Error for Failure {}

impl Failure {
    /// Of this kind, in these words, as far as they are fit to be shown: what a server says may be anything.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        let text: String = text.into();
        let is_fit = text.len() <= LONGEST_TEXT && !text.contains(char::is_control);
        if is_fit {
            return Self { kind, text };
        }
        let shown = |letter: char| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter };
        Self { kind, text: text.chars().take(LONGEST_TEXT).map(shown).collect() }
    }

    /// An answer that contradicts what is known.
    pub fn wrong(text: impl Into<String>) -> Self {
        Self::new(Kind::Wrong, text)
    }

    /// What the operating system or TLS said of a connection.
    pub fn of_io(error: &io::Error) -> Self {
        if let Some(reason) = source::<rustls::Error>(error) {
            return Self::new(Kind::Tls, format!("TLS: {reason}"));
        }
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => Kind::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Kind::Reset
            }
            io::ErrorKind::UnexpectedEof => Kind::Closed,
            io::ErrorKind::TimedOut => Kind::Timeout,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Kind::Unreachable,
            _ => Kind::System,
        };
        Self::new(kind, error.to_string())
    }

    /// A status that etcd sent; none if it is not from the other end, but from a connection that broke.
    pub fn of_answer(status: &Status) -> Option<Self> {
        let answered = status.source().is_none();
        answered.then(|| Self::new(Kind::Grpc(status.code()), words(status)))
    }

    /// What HTTP/2 said of a connection or a request that broke.
    pub fn of_http2(error: &(dyn Error + 'static)) -> Self {
        if let Some(error) = source::<h2::Error>(error) {
            let orderly = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            return match error.get_io() {
                Some(io) => Self::of_io(io),
                None if orderly => closed(),
                None => Self::new(Kind::Protocol, format!("HTTP/2: {error}")),
            };
        }
        if source::<hyper::Error>(error).is_some_and(|error| error.is_closed() || error.is_canceled()) {
            return closed();
        }
        let mut innermost = error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        Self::new(Kind::Protocol, innermost.to_string())
    }
}

/// The other end closed the connection in order.
pub fn closed() -> Failure {
    Failure::new(Kind::Closed, "the other end closed the connection")
}

fn words(status: &Status) -> String {
    match status.message() {
        "" => format!("gRPC status {:?}", status.code()),
        message => message.to_owned(),
    }
}

/// The first error of this type in a chain, an I/O error's own included.
fn source<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_errors_have_kinds() {
        for (kind, name) in [
            (io::ErrorKind::ConnectionRefused, "refused"),
            (io::ErrorKind::ConnectionReset, "reset"),
            (io::ErrorKind::BrokenPipe, "reset"),
            (io::ErrorKind::UnexpectedEof, "closed"),
            (io::ErrorKind::HostUnreachable, "unreachable"),
            (io::ErrorKind::AddrNotAvailable, "system"),
        ] {
            assert_eq!(Failure::of_io(&kind.into()).kind.name(), name);
        }
        let tls = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let tls = Failure::of_io(&io::Error::new(io::ErrorKind::InvalidData, tls));
        assert_eq!(
            (tls.kind, tls.text.as_str()),
            (Kind::Tls, "TLS: received fatal alert: CertificateRequired")
        );
    }

    #[test]
    fn what_a_server_says_does_not_write_on_the_terminal() {
        let said = format!("\u{1b}[2Jgone\n{}", "x".repeat(1000));
        let text = Failure::of_answer(&Status::unknown(said)).unwrap().text;
        assert!(text.starts_with("\u{fffd}[2Jgone\u{fffd}xxx"), "{text}");
        assert_eq!(text.chars().count(), LONGEST_TEXT);
    }

    #[test]
    fn etcds_own_statuses_are_told_from_broken_connections() {
        let said = Failure::of_answer(&Status::unavailable("etcdserver: request timed out")).unwrap();
        assert_eq!(
            (said.kind.name(), said.text.as_str()),
            ("grpc_unavailable", "etcdserver: request timed out")
        );
        assert_eq!(Failure::of_answer(&Status::unavailable("")).unwrap().text, "gRPC status Unavailable");
        let broke = Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert_eq!(Failure::of_answer(&broke), None);
    }
}
