//! Medians, spreads, and when a ratio says nothing.

/// What the rounds of one figure found, in the figure's unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub median: f64,
    /// A quarter of the rounds found less.
    pub low: f64,
    /// A quarter of the rounds found more.
    pub high: f64,
    /// The least of any round.
    pub least: f64,
    /// The most of any round.
    pub most: f64,
    pub rounds: usize,
}

impl Summary {
    /// Of at least one round; figures that are no numbers are left out.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| sample.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        if sorted.is_empty() {
            return None;
        }
        let at = |part| quantile(&sorted, part);
        Some(Self {
            median: at(0.5),
            low: at(0.25),
            high: at(0.75),
            least: at(0.0),
            most: at(1.0),
            rounds: sorted.len(),
        })
    }

    fn middle_half(&self) -> Range {
        Range { low: self.low, high: self.high }
    }
}

/// Between the two samples that the quantile lies between, in proportion (Hyndman and Fan's definition 7).
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * (sorted.len() - 1) as f64;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    below + (above - below) * place.fract()
}

/// How many times the other figure this one is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ratio {
    /// Of the medians.
    Times(f64),
    /// The middle halves of the rounds overlap: the rounds cannot tell the two apart. Between these it lies.
    Unclear(Range),
    /// The other figure's middle half reaches zero or below, or there are fewer than three rounds.
    Meaningless,
}

/// Fewest rounds whose spread says anything.
const FEWEST: usize = 3;

impl Ratio {
    pub fn of(this: &Summary, other: &Summary) -> Self {
        let too_few = this.rounds < FEWEST || other.rounds < FEWEST;
        if too_few || other.low <= 0.0 || this.low < 0.0 {
            Self::Meaningless
        } else if this.middle_half().meets(&other.middle_half()) {
            Self::Unclear(Range::between(this, other))
        } else {
            Self::Times(this.median / other.median)
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Times(times) => write!(f, "{times:.2} ×"),
            Self::Unclear(range) => write!(f, "≈ ({range})"),
            Self::Meaningless => write!(f, "–"),
        }
    }
}

/// From where to where a figure or a ratio lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    pub low: f64,
    pub high: f64,
}

impl Range {
    /// Of a ratio, by all rounds; none where that would be [`Ratio::Meaningless`]. Without an end where a round of the other's
    /// found nothing.
    pub fn of_all(this: &Summary, other: &Summary) -> Option<Self> {
        if Ratio::of(this, other) == Ratio::Meaningless {
            return None;
        }
        let high = if other.least > 0.0 { this.most / other.least } else { f64::INFINITY };
        Some(Self { low: this.least / other.most, high })
    }

    fn between(this: &Summary, other: &Summary) -> Self {
        Self { low: this.low / other.high, high: this.high / other.low }
    }

    pub fn meets(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} to {:.2}", self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(samples: &[f64]) -> Summary {
        Summary::of(samples).unwrap()
    }

    #[test]
    fn the_middle_half_leaves_outliers_out() {
        let found = summary(&[5.0, 1.0, 3.0, 2.0, 1000.0]);
        let all = Summary { median: 3.0, low: 2.0, high: 5.0, least: 1.0, most: 1000.0, rounds: 5 };
        assert_eq!(found, all);
    }

    #[test]
    fn quantiles_lie_between_samples() {
        assert_eq!(summary(&[1.0, 2.0]).median, 1.5);
        let one = Summary { median: 7.0, low: 7.0, high: 7.0, least: 7.0, most: 7.0, rounds: 1 };
        assert_eq!(summary(&[7.0]), one);
    }

    #[test]
    fn nothing_and_no_numbers_are_no_figure() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN, f64::INFINITY]), None);
        assert_eq!(summary(&[f64::NAN, 4.0]).rounds, 1);
    }

    #[test]
    fn a_ratio_is_that_of_the_medians() {
        let ratio = Ratio::of(&summary(&[2.0, 2.1, 2.2]), &summary(&[4.0, 4.2, 4.4]));
        assert_eq!(ratio, Ratio::Times(2.1 / 4.2));
        assert_eq!(ratio.to_string(), "0.50 ×");
    }

    #[test]
    fn overlapping_middle_halves_have_no_ratio() {
        let ratio = Ratio::of(&summary(&[1.0, 2.0, 3.0]), &summary(&[2.0, 3.0, 4.0]));
        assert_eq!(ratio, Ratio::Unclear(Range { low: 1.5 / 3.5, high: 2.5 / 2.5 }));
        assert!(ratio.to_string().starts_with('≈'));
    }

    #[test]
    fn one_that_is_not_positive_has_none_either() {
        let some = summary(&[1.0, 1.0, 1.0]);
        assert_eq!(Ratio::of(&some, &summary(&[-1.0, 0.0, 5.0])), Ratio::Meaningless);
        assert_eq!(Ratio::of(&summary(&[-1.0, -1.0, -1.0]), &some), Ratio::Meaningless);
    }

    #[test]
    fn ranges_meet_or_do_not() {
        let range = |this: [f64; 3]| Range::of_all(&summary(&this), &summary(&[1.0, 1.0, 1.0]));
        let (low, high) = (range([2.0, 2.0, 2.0]).unwrap(), range([2.5, 3.0, 3.5]).unwrap());
        assert_eq!(
            (low.to_string(), high.to_string()),
            ("2.00 to 2.00".to_owned(), "2.50 to 3.50".to_owned())
        );
        assert!(!low.meets(&high) && !high.meets(&low) && high.meets(&high));
        assert_eq!(range([-1.0, -1.0, -1.0]), None);
        // A round of seven in which the other found nothing says nothing of how high the ratio may be.
        let other = summary(&[0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
        let range = Range::of_all(&summary(&[2.0; 7]), &other).unwrap();
        assert_eq!(range, Range { low: 1.0, high: f64::INFINITY });
    }

    #[test]
    fn two_rounds_say_nothing_of_spread() {
        assert_eq!(Ratio::of(&summary(&[1.0, 1.0]), &summary(&[9.0, 9.0, 9.0])), Ratio::Meaningless);
    }
}
