//! What answers may say, given those before them.
//!
//! etcd is linearizable: whatever is asked *after* an answer was there knows at least what that answer knew, by whichever
//! connection and from whichever member it comes. So a request notes what is known when it is sent, and its answer must not
//! know less.

use crate::{
    messages::{KeyValue, ResponseHeader},
    payload::{Key, Payload},
};

/// What is known of the cluster and of every shared key.
#[derive(Debug)]
pub struct Truth {
    payload: Payload,
    /// None before the first answer.
    cluster: Option<u64>,
    /// The highest revision any answer had.
    revision: i64,
    keys: Vec<Known>,
    /// Puts that were begun: they have the numbers below it.
    puts: u64,
}

/// The latest known put of a key; revision 0 if none is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Known {
    revision: i64,
    put: u64,
}

/// What was known when a request was sent.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    revision: i64,
    key: Known,
}

impl Truth {
    /// Nothing is known of these many shared keys.
    pub fn new(payload: Payload, keys: usize) -> Self {
        Self { payload, cluster: None, revision: 0, keys: vec![Known::default(); keys], puts: 0 }
    }

    /// What is known now, for a request that is sent now.
    pub fn before(&self, key: Key) -> Before {
        Before { revision: self.revision, key: self.known(key) }
    }

    /// The number of a put that begins now.
    pub fn begin_put(&mut self) -> u64 {
        self.puts += 1;
        self.puts - 1
    }

    /// A put was answered: its revision.
    ///
    /// # Errors
    ///
    /// In words, if the answer contradicts what was known.
    pub fn put_answered(
        &mut self,
        key: Key,
        put: u64,
        before: Before,
        header: Option<ResponseHeader>,
    ) -> Result<i64, String> {
        let header = self.check_header(header)?;
        if header.revision <= before.revision {
            return Err(format!(
                "a put has revision {}, after revision {} had been seen",
                header.revision, before.revision
            ));
        }
        self.learn(header.revision, key, Known { revision: header.revision, put });
        Ok(header.revision)
    }

    /// Something was read, linearizably.
    ///
    /// # Errors
    ///
    /// In words, if the answer contradicts what was known.
    pub fn read(&mut self, before: Before, header: Option<ResponseHeader>) -> Result<ResponseHeader, String> {
        let header = self.check_header(header)?;
        if header.revision < before.revision {
            return Err(format!(
                "a read knows revision {}, after revision {} had been seen",
                header.revision, before.revision
            ));
        }
        self.revision = self.revision.max(header.revision);
        Ok(header)
    }

    /// A key was read.
    ///
    /// # Errors
    ///
    /// In words, if the answer contradicts what was known.
    pub fn got(
        &mut self,
        key: Key,
        before: Before,
        header: Option<ResponseHeader>,
        kvs: &[KeyValue],
    ) -> Result<(), String> {
        let header = self.read(before, header)?;
        let [kv] = kvs else { return Err(format!("a get has {} keys instead of 1", kvs.len())) };
        let found = self.check_value(key, kv)?;
        if found.revision > header.revision {
            return Err(format!(
                "a get at revision {} has a value of revision {}",
                header.revision, found.revision
            ));
        }
        if found.revision < before.key.revision {
            return Err(format!(
                "a get has the value of revision {}, after revision {} of the same key had been seen",
                found.revision, before.key.revision
            ));
        }
        let known = self.known(key);
        if found.revision == known.revision && found.put != known.put {
            return Err(format!(
                "revision {} has the value of put {}, and had that of put {}",
                found.revision, found.put, known.put
            ));
        }
        self.learn(header.revision, key, found);
        Ok(())
    }

    /// The revision and the put of an event for this key.
    ///
    /// # Errors
    ///
    /// In words, if it is none of this run's.
    pub fn event(&self, key: Key, kv: &KeyValue) -> Result<(i64, u64), String> {
        self.check_value(key, kv).map(|found| (found.revision, found.put))
    }

    fn known(&self, key: Key) -> Known {
        match key {
            Key::Shared(number) => self.keys.get(number).copied().unwrap_or_default(),
            // Nobody reads these; their events are followed by their connection.
            Key::Watched(_) => Known::default(),
        }
    }

    fn learn(&mut self, revision: i64, key: Key, found: Known) {
        self.revision = self.revision.max(revision);
        if let Key::Shared(number) = key
            && let Some(known) = self.keys.get_mut(number)
            && found.revision > known.revision
        {
            *known = found;
        }
    }

    fn check_header(&mut self, header: Option<ResponseHeader>) -> Result<ResponseHeader, String> {
        let header = header.ok_or("an answer without a header")?;
        let cluster = *self.cluster.get_or_insert(header.cluster_id);
        if header.cluster_id != cluster {
            return Err(format!(
                "an answer of cluster {:x}, after one of cluster {cluster:x}",
                header.cluster_id
            ));
        }
        Ok(header)
    }

    fn check_value(&self, key: Key, kv: &KeyValue) -> Result<Known, String> {
        if kv.key != self.payload.key(key) {
            return Err(format!("another key, {}", kv.key.escape_ascii()));
        }
        let put = self.payload.read(key, &kv.value)?;
        if put >= self.puts {
            return Err(format!("the value of put {put}, which has not been made"));
        }
        Ok(Known { revision: kv.mod_revision, put })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: Key = Key::Shared(1);

    fn header(revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: 7, revision })
    }

    fn truth() -> Truth {
        let mut truth = Truth::new(Payload::new(1, 0, 0), 2);
        for revision in [10, 11] {
            let (put, before) = (truth.begin_put(), truth.before(KEY));
            truth.put_answered(KEY, put, before, header(revision)).unwrap();
        }
        truth
    }

    fn kv(truth: &Truth, revision: i64, put: u64) -> Vec<KeyValue> {
        let payload = truth.payload;
        vec![KeyValue { key: payload.key(KEY), mod_revision: revision, value: payload.value(KEY, put) }]
    }

    /// A get sent now, answered so.
    fn get(truth: &mut Truth, revision: i64, kvs: &[KeyValue]) -> Result<(), String> {
        let before = truth.before(KEY);
        truth.got(KEY, before, header(revision), kvs)
    }

    #[test]
    fn the_latest_put_is_read() {
        let mut truth = truth();
        let kvs = kv(&truth, 11, 1);
        assert_eq!(get(&mut truth, 11, &kvs), Ok(()));
        assert_eq!(get(&mut truth, 12, &kvs), Ok(()));
    }

    #[test]
    fn time_does_not_go_back() {
        let mut truth = truth();
        let old = kv(&truth, 10, 0);
        assert_eq!(
            get(&mut truth, 11, &old).unwrap_err(),
            "a get has the value of revision 10, after revision 11 of the same key had been seen"
        );
        let kvs = kv(&truth, 11, 1);
        assert!(get(&mut truth, 10, &kvs).unwrap_err().starts_with("a read knows revision 10, after"));
        let (put, before) = (truth.begin_put(), truth.before(KEY));
        let said = truth.put_answered(KEY, put, before, header(11)).unwrap_err();
        assert_eq!(said, "a put has revision 11, after revision 11 had been seen");
    }

    #[test]
    fn what_was_under_way_may_be_older() {
        let mut truth = truth();
        let before = truth.before(KEY);
        let (put, before_put) = (truth.begin_put(), truth.before(KEY));
        truth.put_answered(KEY, put, before_put, header(12)).unwrap();
        // Sent before that put was answered, so it may have been read before it.
        let kvs = kv(&truth, 11, 1);
        assert_eq!(truth.got(KEY, before, header(11), &kvs), Ok(()));
        // A put whose answer was lost may be read, and then stays.
        let lost = truth.begin_put();
        let kvs = kv(&truth, 13, lost);
        assert_eq!(get(&mut truth, 13, &kvs), Ok(()));
        let old = kv(&truth, 12, put);
        assert!(get(&mut truth, 13, &old).is_err());
    }

    #[test]
    fn what_nobody_wrote_is_wrong() {
        let mut truth = truth();
        for (kvs, said) in [
            (vec![], "a get has 0 keys instead of 1"),
            (kv(&truth, 11, 0), "revision 11 has the value of put 0, and had that of put 1"),
            (kv(&truth, 12, 2), "the value of put 2, which has not been made"),
            (kv(&truth, 99, 1), "a get at revision 11 has a value of revision 99"),
            (vec![KeyValue { key: b"other".into(), ..kv(&truth, 11, 1)[0].clone() }], "another key, other"),
        ] {
            assert_eq!(get(&mut truth, 11, &kvs).unwrap_err(), said);
        }
        let before = truth.before(KEY);
        assert_eq!(truth.got(KEY, before, None, &[]).unwrap_err(), "an answer without a header");
        let other = Some(ResponseHeader { cluster_id: 8, revision: 20 });
        let said = truth.put_answered(KEY, 0, before, other).unwrap_err();
        assert_eq!(said, "an answer of cluster 8, after one of cluster 7");
    }

    /// A request to a store that does one after the other: when it is sent, how long until it is done there, and how long
    /// until its answer is here, if it comes.
    #[derive(Debug, Clone)]
    struct Call {
        put: bool,
        key: usize,
        sent: u8,
        done_after: u8,
        answered_after: Option<u8>,
    }

    fn call() -> impl Strategy<Value = Call> {
        let answered_after = prop::option::weighted(0.9, 0u8..30);
        (any::<bool>(), 0usize..3, 0u8..150, 0u8..30, answered_after).prop_map(
            |(put, key, sent, done_after, answered_after)| Call {
                put,
                key,
                sent,
                done_after,
                answered_after,
            },
        )
    }

    proptest! {
        /// However requests overlap and whichever answers are lost: what a correct store says is not wrong.
        #[test]
        fn a_linearizable_store_is_never_wrong(calls in prop::collection::vec(call(), 1..60)) {
            let mut truth = Truth::new(Payload::new(1, 0, 0), 3);
            let payload = truth.payload;
            let (mut revision, mut store) = (0, Vec::new());
            for key in 0..3 {
                let (put, before) = (truth.begin_put(), truth.before(Key::Shared(key)));
                revision += 1;
                store.push((revision, put));
                truth.put_answered(Key::Shared(key), put, before, header(revision)).unwrap();
            }

            let mut steps = Vec::new();
            for (number, call) in calls.iter().enumerate() {
                let done = call.sent + call.done_after;
                steps.extend([(call.sent, 0, number), (done, 1, number)]);
                steps.extend(call.answered_after.map(|after| (done + after, 2, number)));
            }
            steps.sort_unstable();
            let mut sent = vec![None; calls.len()];
            let mut done = vec![None; calls.len()];
            for (_, phase, number) in steps {
                let call = &calls[number];
                let key = Key::Shared(call.key);
                match phase {
                    0 => {
                        let put = if call.put { truth.begin_put() } else { 0 };
                        sent[number] = Some((put, truth.before(key)));
                    }
                    1 => {
                        if call.put {
                            revision += 1;
                            store[call.key] = (revision, sent[number].unwrap().0);
                        }
                        done[number] = Some((revision, store[call.key]));
                    }
                    _ => {
                        let (put, before) = sent[number].unwrap();
                        let (at, (mod_revision, written)) = done[number].unwrap();
                        if call.put {
                            prop_assert_eq!(truth.put_answered(key, put, before, header(at)), Ok(at));
                        } else {
                            let value = payload.value(key, written);
                            let kv = KeyValue { key: payload.key(key), mod_revision, value };
                            prop_assert_eq!(truth.got(key, before, header(at), &[kv]), Ok(()));
                        }
                    }
                }
            }
        }
    }
}
