//! Where a value stands in the file, found by its path: for checks that are made on the finished types.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Span;

/// A parsed file.
pub(super) struct Document<'d>(pub(super) &'d DeTable<'d>);

/// One step of a path.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> From<&'a str> for Step<'a> {
    fn from(key: &'a str) -> Self {
        Step::Key(key)
    }
}

impl From<usize> for Step<'_> {
    fn from(index: usize) -> Self {
        Step::Index(index)
    }
}

impl Document<'_> {
    /// The place of the value, or of the innermost section around it that is written; the file's start if
    /// none is.
    pub(super) fn place(&self, path: &[Step<'_>]) -> Span {
        self.walk(path).last().map_or(0..0, Spanned::span)
    }

    /// The values along a path, as far as it is written.
    fn walk<'s>(&'s self, path: &'s [Step<'s>]) -> impl Iterator<Item = &'s Spanned<DeValue<'s>>> {
        let mut at: Option<&'s Spanned<DeValue<'s>>> = None;
        path.iter().map_while(move |step| {
            let next = match (step, at.map(Spanned::get_ref)) {
                (Step::Key(key), None) => self.0.get(*key),
                (Step::Key(key), Some(value)) => value.get(*key),
                (Step::Index(index), Some(value)) => value.get(*index),
                (Step::Index(_), None) => None,
            };
            at = next;
            next
        })
    }
}
