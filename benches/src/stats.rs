//! Medians, spreads and latency figures.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The middle and the ends of several rounds of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle value, or the mean of the two middle ones.
    pub median: f64,
    /// The smallest round.
    pub min: f64,
    /// The largest round.
    pub max: f64,
}

/// The spread of `rounds`; `None` when there are none, or when one is not a number.
pub fn spread(rounds: &[f64]) -> Option<Spread> {
    if rounds.is_empty() || rounds.iter().any(|value| value.is_nan()) {
        return None;
    }
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    Some(Spread { median, min: sorted[0], max: sorted[sorted.len() - 1] })
}

/// The spread of `left / right` of each round that has both: what two things measured side by side
/// in the same minute say of each other, whatever the machine did in between. Also how many rounds
/// that were.
pub fn paired_ratio(left: &[(u64, f64)], right: &[(u64, f64)]) -> (Option<Spread>, usize) {
    let mut ratios = Vec::new();
    for (round, numerator) in left {
        let other = right.iter().find(|(other_round, _)| other_round == round);
        if let Some((_, denominator)) = other
            && *denominator > 0.0
        {
            ratios.push(numerator / denominator);
        }
    }
    (spread(&ratios), ratios.len())
}

/// Latencies in nanoseconds, to three significant digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

/// Percentiles of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many latencies were recorded.
    pub count: u64,
    /// Half were at most this long.
    pub p50_ms: f64,
    /// 99 of 100 were at most this long.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Default for Latencies {
    fn default() -> Self {
        let hour_ns = 3_600_000_000_000;
        let histogram = Histogram::new_with_bounds(1, hour_ns, 3)
            .expect("one nanosecond to one hour at three digits is a valid range");
        Self(histogram)
    }
}

impl Latencies {
    /// Adds one latency.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// The percentiles so far; all zero when nothing was recorded.
    pub fn percentiles(&self) -> Percentiles {
        let ms = |ns: u64| ns as f64 / 1e6;
        if self.0.is_empty() {
            return Percentiles { count: 0, p50_ms: 0.0, p99_ms: 0.0, max_ms: 0.0 };
        }
        Percentiles {
            count: self.0.len(),
            p50_ms: ms(self.0.value_at_quantile(0.50)),
            p99_ms: ms(self.0.value_at_quantile(0.99)),
            max_ms: ms(self.0.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_rounds_is_the_middle_one() {
        let expected = Spread { median: 2.0, min: 1.0, max: 9.0 };
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(expected));
    }

    #[test]
    fn median_of_even_rounds_is_between_the_middle_two() {
        let expected = Spread { median: 2.5, min: 1.0, max: 9.0 };
        assert_eq!(spread(&[3.0, 9.0, 1.0, 2.0]), Some(expected));
    }

    #[test]
    fn no_rounds_and_broken_rounds_have_no_spread() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn ratio_pairs_rounds_before_it_takes_the_median() {
        // A slow second round of both leaves the ratio alone.
        let ratio =
            paired_ratio(&[(1, 40.0), (2, 4.0), (3, 50.0)], &[(1, 10.0), (2, 1.0), (3, 10.0)]);
        assert_eq!(ratio, (Some(Spread { median: 4.0, min: 4.0, max: 5.0 }), 3));
    }

    #[test]
    fn a_round_that_one_side_lacks_pairs_with_none() {
        let ratio = paired_ratio(&[(1, 40.0), (3, 50.0)], &[(2, 1.0), (3, 10.0)]);
        assert_eq!(ratio, (Some(Spread { median: 5.0, min: 5.0, max: 5.0 }), 1));
        assert_eq!(paired_ratio(&[(1, 1.0)], &[(1, 0.0)]), (None, 0));
    }

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut latencies = Latencies::default();
        for ms in 1..=1000 {
            latencies.record(Duration::from_millis(ms));
        }
        let found = latencies.percentiles();
        assert_eq!(found.count, 1000);
        assert!((found.p50_ms - 500.0).abs() <= 0.5, "{found:?}");
        assert!((found.p99_ms - 990.0).abs() <= 1.0, "{found:?}");
        assert!((found.max_ms - 1000.0).abs() <= 1.0, "{found:?}");
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        assert_eq!(Latencies::default().percentiles().count, 0);
    }
}
