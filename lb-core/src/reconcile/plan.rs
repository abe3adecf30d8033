use super::{Actual, Change, Desired};

/// Why the maps cannot hold what is desired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {}

/// Compares desired and actual state. Remembers the Maglev tables it has built, and nothing else.
#[derive(Debug, Default)]
pub struct Planner {}

impl Planner {
    /// The map writes that turn `actual` into `desired`, in order; none where they agree.
    pub fn plan(&mut self, _desired: &Desired, _actual: &Actual) -> Result<Vec<Change>, Error> {
        Ok(Vec::new())
    }
}
