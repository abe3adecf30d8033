//! What is wrong with a config, and where: errors and warnings that point at the line.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// Bytes of the config's text.
pub(super) type Span = Range<usize>;

/// One remark on a place in the config.
///
/// `{}` prints `FILE:LINE:COL: message`, for a log line; `{:#}` adds the line itself with a caret below, for
/// a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong, the offending value in quotes, what to do.
    pub message: String,
    line_text: String,
    /// Characters to underline, at least 1.
    width: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message, line_text, width } = self;
        write!(f, "{file}:{line}:{column}: {message}")?;
        if !f.alternate() {
            return Ok(());
        }
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        // A tab stays a tab, so that the caret stands below its character however wide the terminal shows
        // tabs.
        let indent: String =
            line_text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(f, "\n{gutter} |\n{number} | {line_text}\n{gutter} | {indent}{}", "^".repeat(*width))
    }
}

/// Something that works but is probably not meant. Prints like a [`Diagnostic`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(pub Diagnostic);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why a config cannot be used: everything found, in the file's order, at least one. Prints as for a
/// terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Diagnostic>);

impl ConfigErrors {
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{error:#}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects remarks while a config is read.
pub(super) struct Sink<'t> {
    text: &'t str,
    file: &'t str,
    errors: RefCell<Vec<(usize, Diagnostic)>>,
    warnings: RefCell<Vec<(usize, Diagnostic)>>,
}

impl<'t> Sink<'t> {
    pub(super) fn new(text: &'t str, file: &'t str) -> Self {
        Self { text, file, errors: RefCell::default(), warnings: RefCell::default() }
    }

    pub(super) fn error(&self, at: &Span, message: impl Into<String>) {
        self.errors.borrow_mut().push((at.start, self.diagnostic(at, message.into())));
    }

    pub(super) fn warn(&self, at: &Span, message: impl Into<String>) {
        self.warnings.borrow_mut().push((at.start, self.diagnostic(at, message.into())));
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty()
    }

    /// The text at a place as it is written, to be quoted: its first line, cut at 60 characters.
    pub(super) fn quote(&self, at: &Span) -> String {
        let written = self.text.get(at.clone()).unwrap_or_default();
        let line = written.lines().next().unwrap_or_default();
        let mut quote: String = line.chars().map(printable).take(60).collect();
        if quote.len() < written.len() {
            quote.push('…');
        }
        quote
    }

    /// The line a place begins on, from 1.
    pub(super) fn line(&self, at: &Span) -> usize {
        self.locate(at.start).0
    }

    /// The warnings, or the errors if there are any.
    pub(super) fn finish(self) -> Result<Vec<Warning>, ConfigErrors> {
        if self.has_errors() {
            return Err(self.finish_with_errors());
        }
        Ok(in_order(self.warnings.into_inner()).map(Warning).collect())
    }

    /// The errors, of which there is at least one.
    pub(super) fn finish_with_errors(self) -> ConfigErrors {
        debug_assert!(self.has_errors(), "a value was refused without a word");
        ConfigErrors(in_order(self.errors.into_inner()).collect())
    }

    fn diagnostic(&self, at: &Span, message: String) -> Diagnostic {
        let (line, line_start) = self.locate(at.start);
        let rest = &self.text[line_start..];
        let line_text = rest.lines().next().unwrap_or_default();
        let before = self.text.get(line_start..at.start).unwrap_or_default().chars().count();
        let length = line_text.chars().count();
        let marked = self.text.get(at.clone()).unwrap_or_default().chars().count();
        Diagnostic {
            file: self.file.to_owned(),
            line,
            column: before + 1,
            message,
            line_text: line_text.chars().map(printable).collect(),
            width: marked.min(length.saturating_sub(before)).max(1),
        }
    }

    /// The line's number from 1, and where it starts.
    fn locate(&self, offset: usize) -> (usize, usize) {
        // At the end of the text, after its last newline, the last line is meant.
        let end = self.text.trim_end_matches(['\n', '\r']).len();
        let before = &self.text.as_bytes()[..offset.min(end)];
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        (1 + before.iter().filter(|b| **b == b'\n').count(), line_start)
    }
}

/// In the order of the file.
fn in_order(mut found: Vec<(usize, Diagnostic)>) -> impl Iterator<Item = Diagnostic> {
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, d)| d)
}

/// What may go to a terminal as it is: a file's control characters may not.
fn printable(c: char) -> char {
    if c.is_control() && c != '\t' { '\u{fffd}' } else { c }
}
