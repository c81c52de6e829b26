//! Does a stream deliver every position exactly once, in order?

/// Follows the positions of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Checker {
    first: Option<u64>,
    last: u64,
    delivered: u64,
    missed: u64,
    repeated: u64,
}

/// What a stream, or all streams together, got wrong. All zero is right.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Positions that should have come and did not, or came too late.
    pub lost: u64,
    /// Positions that came twice, or after a later one.
    pub repeated: u64,
}

impl Checker {
    /// Notes the next delivered position.
    pub fn see(&mut self, position: u64) {
        self.delivered += 1;
        if self.first.is_none() {
            self.first = Some(position);
            self.last = position;
        } else if position > self.last {
            self.missed += position - self.last - 1;
            self.last = position;
        } else {
            self.repeated += 1;
        }
    }

    /// The highest position so far, 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// How many events came, faults included.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Judges the stream, which had to deliver at least `first` to `last`, both included. Positions
    /// around that range are no fault as long as they are contiguous with it.
    pub fn judge(&self, first: u64, last: u64) -> Faults {
        let Some(seen_first) = self.first else {
            return Faults { lost: (last + 1).saturating_sub(first), repeated: 0 };
        };
        let head = seen_first.min(last + 1).saturating_sub(first);
        let tail = last.saturating_sub(self.last.max(first.saturating_sub(1)));
        Faults { lost: self.missed + head + tail, repeated: self.repeated }
    }
}

impl std::ops::AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.repeated += other.repeated;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(positions: &[u64], first: u64, last: u64) -> (u64, u64) {
        let mut checker = Checker::default();
        for position in positions {
            checker.see(*position);
        }
        let faults = checker.judge(first, last);
        (faults.lost, faults.repeated)
    }

    #[test]
    fn contiguous_positions_have_no_fault() {
        assert_eq!(judge(&[5, 6, 7], 5, 7), (0, 0));
        assert_eq!(judge(&[3, 4, 5, 6, 7, 8], 5, 7), (0, 0));
    }

    #[test]
    fn a_hole_is_lost() {
        assert_eq!(judge(&[5, 7], 5, 7), (1, 0));
    }

    #[test]
    fn a_missing_head_and_a_missing_tail_are_lost() {
        assert_eq!(judge(&[7, 8], 5, 10), (4, 0));
    }

    #[test]
    fn nothing_at_all_is_all_lost() {
        assert_eq!(judge(&[], 5, 10), (6, 0));
        assert_eq!(judge(&[], 5, 4), (0, 0));
    }

    #[test]
    fn a_stream_that_ended_before_the_range_lost_all_of_it() {
        assert_eq!(judge(&[1, 2], 5, 10), (6, 0));
    }

    #[test]
    fn a_repeat_is_counted_and_nothing_is_lost_by_it() {
        assert_eq!(judge(&[5, 6, 6, 7], 5, 7), (0, 1));
        assert_eq!(judge(&[5, 6, 7, 5, 6, 7], 5, 7), (0, 3));
    }

    #[test]
    fn a_swap_is_both() {
        assert_eq!(judge(&[5, 7, 6, 8], 5, 8), (1, 1));
    }
}
