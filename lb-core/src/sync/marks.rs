//! Which slots are to be sent: a bit a slot.

use std::collections::BTreeMap;

/// Slots of a port table.
const WORDS: usize = 65_536 / 64;

/// Marked slots of port tables, each table by its number.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    tables: BTreeMap<u16, Table>,
    count: usize,
}

#[derive(Clone, Debug)]
struct Table {
    words: Box<[u64; WORDS]>,
    count: usize,
    /// Where the search goes on: slots are sent in turn, so that one which changes all the time holds no other up.
    cursor: usize,
}

impl Marks {
    /// Marks a slot.
    pub fn mark(&mut self, table: u16, port: u16) {
        let table = self.tables.entry(table).or_insert_with(|| Table {
            words: Box::new([0; WORDS]),
            count: 0,
            cursor: 0,
        });
        let (word, bit) = (usize::from(port) / 64, 1u64 << (port % 64));
        if table.words[word] & bit == 0 {
            table.words[word] |= bit;
            table.count += 1;
            self.count += 1;
        }
    }

    /// Marks every slot of a table.
    pub fn mark_all(&mut self, table: u16) {
        self.forget(table);
        self.tables.insert(table, Table { words: Box::new([u64::MAX; WORDS]), count: WORDS * 64, cursor: 0 });
        self.count += WORDS * 64;
    }

    /// Slots that are marked.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes a mark away and names its slot.
    pub fn take(&mut self) -> Option<(u16, u16)> {
        let (&number, table) = self.tables.iter_mut().find(|(_, table)| table.count > 0)?;
        for step in 0..=WORDS {
            let word = (table.cursor + step) % WORDS;
            if table.words[word] != 0 {
                let bit = table.words[word].trailing_zeros();
                table.words[word] &= table.words[word] - 1;
                table.count -= 1;
                table.cursor = word;
                self.count -= 1;
                // 1,023 × 64 + 63 at most.
                return Some((number, (word * 64) as u16 + bit as u16));
            }
        }
        None
    }

    /// A table is no more.
    pub fn forget(&mut self, table: u16) {
        if let Some(table) = self.tables.remove(&table) {
            self.count -= table.count;
        }
    }

    /// Takes all marks away.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
