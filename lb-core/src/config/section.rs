//! A section of the file while it is read: knows its keys, refuses others, and reports each value that is
//! wrong.
//!
//! Every method that gives `None` for a value that is needed has reported why. So a caller reads all it wants
//! first, and unpacks with `?` last: then all mistakes of a section are found in one go.

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Sink, Span};
use super::schema::{Need, SECTIONS, Schema};
use super::value::{FromToml, Problem, Show, nearest};

pub(super) struct Section<'d> {
    sink: &'d Sink<'d>,
    /// `None`: the section is not written, all its keys have their defaults.
    table: Option<&'d DeTable<'d>>,
    schema: &'static Schema,
    /// The section's title in the file, or its parent's if it is not written.
    place: Span,
}

impl<'d> Section<'d> {
    pub(super) fn new(
        sink: &'d Sink<'d>,
        table: &'d DeTable<'d>,
        schema: &'static Schema,
        place: Span,
    ) -> Self {
        for key in table.keys().filter(|k| schema.key(k.get_ref()).is_none()) {
            sink.error(&key.span(), unknown_key(key.get_ref(), schema));
        }
        Self { sink, table: Some(table), schema, place }
    }

    pub(super) fn is_written(&self, key: &str) -> bool {
        self.written(key).is_some()
    }

    /// Where the key's value stands, or the section's title if it is not written.
    pub(super) fn place(&self, key: &str) -> Span {
        self.written(key).map_or_else(|| self.place.clone(), Spanned::span)
    }

    /// Reports a mistake in a key's value: `what` is wrong, and the `fix`.
    pub(super) fn error(&self, key: &str, what: &str, fix: &str) {
        self.report(key, Problem::new(what, fix));
    }

    pub(super) fn warn(&self, key: &str, message: impl Into<String>) {
        self.sink.warn(&self.place(key), message);
    }

    /// A value that is required or has a default.
    pub(super) fn get<T: FromToml>(&self, key: &'static str) -> Option<T> {
        match self.written(key) {
            Some(value) => self.read(key, value),
            None => self.unwritten(key),
        }
    }

    /// A value that may be absent: `Some(None)`.
    pub(super) fn optional<T: FromToml>(&self, key: &'static str) -> Option<Option<T>> {
        self.written(key).map_or(Some(None), |value| self.read(key, value).map(Some))
    }

    /// As [`Section::get`], for a value that must lie in a range.
    pub(super) fn within<T>(&self, key: &'static str, range: &RangeInclusive<T>) -> Option<T>
    where
        T: FromToml + PartialOrd + Show,
    {
        let value = self.get(key)?;
        self.in_range(key, value, range)
    }

    /// As [`Section::optional`], for a value that must lie in a range.
    pub(super) fn optional_within<T>(&self, key: &'static str, range: &RangeInclusive<T>) -> Option<Option<T>>
    where
        T: FromToml + PartialOrd + Show,
    {
        match self.optional(key)? {
            Some(value) => self.in_range(key, value, range).map(Some),
            None => Some(None),
        }
    }

    /// The section within this one, if it is written.
    pub(super) fn section(&self, key: &str, schema: &'static Schema) -> Option<Section<'d>> {
        let value = self.written(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.error(key, "is not a section", &format!("write it as {}, once", schema.title));
            return None;
        };
        Some(Section::new(self.sink, table, schema, value.span()))
    }

    /// As [`Section::section`]; one that is not written has nothing but defaults.
    pub(super) fn section_or_defaults(&self, key: &str, schema: &'static Schema) -> Option<Section<'d>> {
        if self.is_written(key) {
            return self.section(key, schema);
        }
        Some(Section { sink: self.sink, table: None, schema, place: self.place.clone() })
    }

    /// The sections of a list, `[[like.this]]`.
    pub(super) fn sections(&self, key: &str, schema: &'static Schema) -> Vec<Section<'d>> {
        let Some(value) = self.written(key) else { return Vec::new() };
        let is_list = value.get_ref().as_array().filter(|a| a.iter().all(|e| e.get_ref().is_table()));
        let Some(list) = is_list else {
            self.error(key, "is not a list of sections", &format!("write each as {}", schema.title));
            return Vec::new();
        };
        list.iter()
            .filter_map(|e| Some(Section::new(self.sink, e.get_ref().as_table()?, schema, e.span())))
            .collect()
    }

    fn written(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        debug_assert!(
            self.schema.key(key).is_some(),
            "{key} is missing in the schema of {}",
            self.schema.title
        );
        self.table?.get(key)
    }

    fn read<T: FromToml>(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<T> {
        T::read(value.get_ref()).map_err(|problem| self.report(key, problem)).ok()
    }

    fn unwritten<T: FromToml>(&self, key: &'static str) -> Option<T> {
        let default = match self.schema.key(key)?.need {
            Need::Default(toml) => toml,
            Need::Required | Need::Optional | Need::Section(_) => {
                self.sink.error(&self.place, format!("`{key}` is missing{}; add it", inside(self.schema)));
                return None;
            }
        };
        // A default that cannot be read is a slip in the schema, which a test of all defaults rules out.
        DeValue::parse(default).ok().and_then(|value| self.read(key, &value))
    }

    /// Reports a value that is out of its range.
    pub(super) fn in_range<T: PartialOrd + Show>(
        &self,
        key: &str,
        value: T,
        range: &RangeInclusive<T>,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let (min, max) = (range.start().show(), range.end().show());
        self.error(key, "is out of range", &format!("write a value from {min} to {max}"));
        None
    }

    fn report(&self, key: &str, problem: Problem) {
        let at = problem.at.unwrap_or_else(|| self.place(key));
        let quote = self.sink.quote(&at);
        self.sink.error(&at, format!("`{key}` {}: {quote}; {}", problem.what, problem.fix));
    }
}

fn unknown_key(key: &str, schema: &Schema) -> String {
    let what = format!("unknown key `{}`{}", key.escape_debug(), inside(schema));
    let known = || schema.keys.iter().map(|doc| doc.key);
    if let Some(near) = nearest(key, known()) {
        return format!("{what}; did you mean `{near}`?");
    }
    if let Some(home) = SECTIONS.iter().find(|s| s.key(key).is_some()) {
        return match home.title {
            "" => format!("{what}; `{key}` stands above all sections"),
            title => format!("{what}; `{key}` belongs in {title}"),
        };
    }
    format!("{what}; known here are {}", known().collect::<Vec<_>>().join(", "))
}

fn inside(schema: &Schema) -> String {
    if schema.title.is_empty() { String::new() } else { format!(" in {}", schema.title) }
}
