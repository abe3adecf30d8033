//! Which events a connection's watch stream owes, and which it brought.
//!
//! etcd sends the events of a key in the order of their revisions, each once. So an event that is overtaken by a later one
//! is lost, and one that does not come after the last is not new.

use std::collections::{BTreeMap, HashMap};

/// Events that are waited for, each by a `T`.
#[derive(Debug)]
pub struct Events<T> {
    /// Of the last event, or of the store when the watch began; 0 before.
    last: i64,
    waiting: HashMap<u64, Waiting<T>>,
    /// The puts among those whose revision is known, by it.
    answered: BTreeMap<i64, u64>,
}

#[derive(Debug)]
struct Waiting<T> {
    by: T,
    revision: Option<i64>,
}

/// What an event means.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// Who waited for it; nobody if the put had failed before, though etcd had taken it.
    pub arrived: Option<T>,
    /// Who waits in vain: their events were overtaken by this one.
    pub lost: Vec<T>,
}

impl<T> Default for Events<T> {
    fn default() -> Self {
        Self { last: 0, waiting: HashMap::new(), answered: BTreeMap::new() }
    }
}

impl<T> Events<T> {
    /// The revision to watch from so that no event is lost or comes twice; 0, from now on, before the first watch.
    pub fn resume_at(&self) -> i64 {
        if self.last == 0 { 0 } else { self.last + 1 }
    }

    /// The watch is made; the store was at this revision then.
    pub fn created(&mut self, revision: i64) {
        // One that resumes has yet to bring the events up to it.
        if self.last == 0 {
            self.last = revision;
        }
    }

    /// The events up to this revision are compacted, and will not come: who waits for them does in vain.
    pub fn compacted(&mut self, revision: i64) -> Vec<T> {
        self.last = self.last.max(revision - 1);
        self.overtaken()
    }

    /// The put of this number is about to be sent.
    pub fn expect(&mut self, put: u64, by: T) {
        self.waiting.insert(put, Waiting { by, revision: None });
    }

    /// A put was answered with this revision. Who waits does so in vain if a later event was here already.
    pub fn answered(&mut self, put: u64, revision: i64) -> Option<T> {
        let waiting = self.waiting.get_mut(&put)?;
        if revision <= self.last {
            return self.waiting.remove(&put).map(|waiting| waiting.by);
        }
        waiting.revision = Some(revision);
        self.answered.insert(revision, put);
        None
    }

    /// Nobody waits for this put's event any more.
    pub fn forget(&mut self, put: u64) {
        if let Some(revision) = self.waiting.remove(&put).and_then(|waiting| waiting.revision) {
            self.answered.remove(&revision);
        }
    }

    /// An event came.
    ///
    /// # Errors
    ///
    /// In words, if it is not a new one.
    pub fn event(&mut self, put: u64, revision: i64) -> Result<Seen<T>, String> {
        if revision <= self.last {
            return Err(format!("an event of revision {revision} after one of revision {}", self.last));
        }
        self.last = revision;
        let arrived = self.waiting.remove(&put).map(|waiting| {
            waiting.revision.map(|revision| self.answered.remove(&revision));
            waiting.by
        });
        Ok(Seen { arrived, lost: self.overtaken() })
    }

    fn overtaken(&mut self) -> Vec<T> {
        let later = self.answered.split_off(&(self.last + 1));
        let overtaken = std::mem::replace(&mut self.answered, later);
        overtaken.into_values().filter_map(|put| Some(self.waiting.remove(&put)?.by)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(arrived: Option<char>, lost: &[char]) -> Result<Seen<char>, String> {
        Ok(Seen { arrived, lost: lost.to_vec() })
    }

    #[test]
    fn an_event_may_come_before_and_after_its_puts_answer() {
        let mut events = Events::default();
        assert_eq!(events.resume_at(), 0);
        events.created(100);
        assert_eq!(events.resume_at(), 101);
        events.expect(1, 'a');
        events.expect(2, 'b');
        assert_eq!(events.event(1, 101), seen(Some('a'), &[]));
        assert_eq!(events.answered(1, 101), None);
        assert_eq!(events.answered(2, 105), None);
        assert_eq!(events.event(2, 105), seen(Some('b'), &[]));
        assert_eq!(events.resume_at(), 106);
        assert!(events.waiting.is_empty() && events.answered.is_empty());
    }

    #[test]
    fn a_lost_event_is_noticed_by_the_next() {
        let mut events = Events::default();
        events.created(100);
        for (put, by) in [(1, 'a'), (2, 'b'), (3, 'c')] {
            events.expect(put, by);
        }
        assert_eq!(events.answered(1, 101), None);
        assert_eq!(events.event(3, 103), seen(Some('c'), &['a']));
        // Its answer is the later of the two.
        assert_eq!(events.answered(2, 102), Some('b'));
        assert!(events.waiting.is_empty() && events.answered.is_empty());
    }

    #[test]
    fn an_event_comes_once_and_in_order() {
        let mut events = Events::<char>::default();
        events.created(100);
        assert_eq!(events.event(5, 101), seen(None, &[]));
        assert_eq!(events.event(5, 101).unwrap_err(), "an event of revision 101 after one of revision 101");
        assert!(events.event(4, 99).is_err());
    }

    #[test]
    fn a_watch_that_resumes_brings_what_came_meanwhile() {
        let mut events = Events::default();
        events.created(100);
        events.expect(1, 'a');
        assert_eq!(events.answered(1, 101), None);
        // The connection broke and is there again, at a later revision.
        events.created(150);
        assert_eq!(events.resume_at(), 101);
        assert_eq!(events.event(1, 101), seen(Some('a'), &[]));
        events.expect(2, 'b');
        events.forget(2);
        assert_eq!(events.event(2, 160), seen(None, &[]));
    }

    #[test]
    fn compaction_loses_events() {
        let mut events = Events::default();
        events.created(100);
        events.expect(1, 'a');
        events.expect(2, 'b');
        assert_eq!(events.answered(1, 101), None);
        assert_eq!(events.answered(2, 300), None);
        assert_eq!(events.compacted(200), ['a']);
        assert_eq!(events.resume_at(), 200);
        assert_eq!(events.event(2, 300), seen(Some('b'), &[]));
    }

    /// What happens to a put that was sent, and when.
    #[derive(Debug, Clone)]
    struct Put {
        answered: u8,
        event: u8,
        /// etcd loses it, as it must not.
        lost: bool,
        forgotten: Option<u8>,
    }

    fn put() -> impl Strategy<Value = Put> {
        let forgotten = prop::option::weighted(0.2, any::<u8>());
        (any::<u8>(), any::<u8>(), prop::bool::weighted(0.2), forgotten)
            .prop_map(|(answered, event, lost, forgotten)| Put { answered, event, lost, forgotten })
    }

    proptest! {
        /// Answers and events may come in any order between them: who waits is told once, and of a loss if there is one.
        #[test]
        fn who_waits_is_told_what_became_of_the_event(puts in prop::collection::vec(put(), 1..20)) {
            enum Step { Answer, Event, Forget }
            let mut steps = Vec::new();
            let mut last_event = 0;
            for (number, put) in puts.iter().enumerate() {
                steps.push((put.answered, number, Step::Answer));
                // In the order of revisions.
                last_event = last_event.max(put.event);
                if !put.lost {
                    steps.push((last_event, number, Step::Event));
                }
                steps.extend(put.forgotten.map(|at| (at, number, Step::Forget)));
            }
            steps.sort_by_key(|(at, number, _)| (*at, *number));

            let mut events = Events::default();
            events.created(100);
            (0..puts.len()).for_each(|number| events.expect(number as u64, number));
            let (mut arrived, mut lost) = (vec![0; puts.len()], vec![0; puts.len()]);
            for (_, number, step) in steps {
                let (put, revision) = (number as u64, 101 + number as i64);
                match step {
                    Step::Answer => events.answered(put, revision).iter().for_each(|by| lost[*by] += 1),
                    Step::Event => {
                        let seen = events.event(put, revision).unwrap();
                        seen.arrived.iter().for_each(|by| arrived[*by] += 1);
                        seen.lost.iter().for_each(|by| lost[*by] += 1);
                    }
                    Step::Forget => events.forget(put),
                }
            }
            for (number, put) in puts.iter().enumerate() {
                let told = (arrived[number], lost[number]);
                let overtaken = puts[number + 1..].iter().any(|later| !later.lost);
                match put {
                    Put { forgotten: Some(_), .. } => prop_assert!(told.0 + told.1 <= 1),
                    Put { lost: false, .. } => prop_assert_eq!(told, (1, 0)),
                    Put { lost: true, .. } => prop_assert_eq!(told, (0, i32::from(overtaken))),
                }
            }
            // What is kept is only what is still waited for.
            prop_assert!(events.answered.len() <= events.waiting.len());
        }
    }
}
