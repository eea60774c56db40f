//! Order statistics of a small sample.

use serde::Serialize;

/// What is told of a sample of durations, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
}

impl Summary {
    /// `None` for an empty sample.
    pub(crate) fn of(sample: &[f64]) -> Option<Self> {
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        let min = *sorted.first()?;
        Some(Self { count: sorted.len(), min, median: quantile(&sorted, 50), p90: quantile(&sorted, 90) })
    }
}

/// The nearest-rank quantile; the mean of the two in the middle for the median of an even count.
fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let count = sorted.len();
    if percent == 50 && count.is_multiple_of(2) {
        return f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]);
    }
    sorted[(count * percent).div_ceil(100).clamp(1, count) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_small_samples() {
        let cases: [(&[f64], Option<[f64; 3]>); 4] = [
            (&[], None),
            (&[7.0], Some([7.0, 7.0, 7.0])),
            (&[4.0, 1.0, 3.0, 2.0], Some([1.0, 2.5, 4.0])),
            (&[10.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 11.0], Some([1.0, 6.0, 10.0])),
        ];
        for (sample, expected) in cases {
            let told = Summary::of(sample).map(|summary| [summary.min, summary.median, summary.p90]);
            assert_eq!(told, expected, "{sample:?}");
        }
    }
}
