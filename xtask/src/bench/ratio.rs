//! Ratios of pairs, and what is told of many of them.

/// A median with its spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// The first and the third quartile.
    pub(crate) quartiles: (f64, f64),
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Spread {
            median: at(&sorted, 2)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            quartiles: (at(&sorted, 1)?, at(&sorted, 3)?),
        })
    }
}

/// The value a number of quarters along the sorted list, between two values in proportion.
fn at(sorted: &[f64], quarters: usize) -> Option<f64> {
    let position = sorted.len().checked_sub(1)? * quarters;
    let (below, share) = (position / 4, position % 4);
    let low = *sorted.get(below)?;
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    let share = [0.0, 0.25, 0.5, 0.75].get(share)?;
    Some((high - low).mul_add(*share, low))
}

/// Of at least one positive value.
pub(crate) fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value.ln();
        count += 1.0;
    }
    (count > 0.0).then(|| (sum / count).exp())
}

#[cfg(test)]
mod tests {
    use super::{Spread, geometric_mean};

    #[test]
    fn twice_and_half_cancel_out() {
        let mean = geometric_mean([2.0, 0.5, 1.0]).unwrap();
        assert!((mean - 1.0).abs() < 1e-12, "{mean}");
        assert_eq!(geometric_mean([]), None);
    }

    #[test]
    fn a_median_lies_in_the_middle_and_quartiles_between_their_neighbours() {
        let spread = Spread::of([5.0, 1.0, 4.0, 2.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 3.0, 5.0));
        assert_eq!(spread.quartiles, (1.75, 4.25));
        let one = Spread::of([7.0]).unwrap();
        assert_eq!((one.median, one.quartiles), (7.0, (7.0, 7.0)));
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
    }
}
