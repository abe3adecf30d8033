//! What this release does not do yet. The parser knows the whole contract; what has no effect yet is refused
//! here, so that nothing is ever silently ignored. Whoever builds a missing piece deletes its lines.

use super::diagnostic::Sink;
use super::model::{Config, Service};
use super::place::{Document, Step};

/// Refuses what is written and not supported yet.
pub(super) fn refuse(config: &Config, document: &Document<'_>, sink: &Sink<'_>) {
    let not_yet = |path: &[Step<'_>], what: &str, fix: &str| {
        sink.error(&document.place(path), format!("{what} is not supported yet; {fix}"));
    };
    for (index, service) in config.services.iter().enumerate() {
        let path = ["service".into(), index.into()];
        refuse_in_service(service, &|keys, what, fix| {
            let keys: Vec<Step<'_>> = keys.iter().map(|key| (*key).into()).collect();
            not_yet(&[&path[..], &keys].concat(), what, fix);
        });
    }
}

fn refuse_in_service(service: &Service, not_yet: &dyn Fn(&[&str], &str, &str)) {
    if service.prefer_local {
        not_yet(&["prefer_local"], "`prefer_local = true`", "remove the key or write false");
    }
}
