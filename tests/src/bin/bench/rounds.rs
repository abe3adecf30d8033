//! Rounds of all contestants in turn (A B C A B C), so that what else the machine does falls on all of them.

use anyhow::Result;

use crate::Effort;

/// Asks every contestant once a round; what it finds, by contestant, in the order of the rounds.
pub fn interleave<C, F>(
    effort: Effort,
    contestants: &mut [C],
    mut measure: impl FnMut(&mut C) -> Result<F>,
) -> Result<Vec<Vec<F>>> {
    let mut found: Vec<Vec<F>> = contestants.iter().map(|_| Vec::new()).collect();
    for round in 0..effort.warm_up() + effort.rounds() {
        for (contestant, found) in contestants.iter_mut().zip(&mut found) {
            let figure = measure(contestant)?;
            if round >= effort.warm_up() {
                found.push(figure);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contestants_take_turns() {
        let mut order = Vec::new();
        let found = interleave(Effort::Full, &mut ['a', 'b'], |who| {
            order.push(*who);
            Ok(order.len())
        })
        .unwrap();
        assert_eq!(order[..4], ['a', 'b', 'a', 'b']);
        // The first two were thrown away.
        assert_eq!(found[0][0], 3);
        assert_eq!(found[0].len(), Effort::Full.rounds());
    }
}
