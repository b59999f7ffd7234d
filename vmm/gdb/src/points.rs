//! Hardware breakpoints and watchpoints, as GDB asks for them, laid out on the points that a
//! processor has.

use accel::{DEBUG_POINTS, DebugPoint, PointKind};

/// What GDB asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub linear: u64,
    pub len: u64,
    pub kind: PointKind,
}

/// All that it asked for, each on one or more points.
#[derive(Debug, Default)]
pub struct Points {
    wants: Vec<Want>,
}

impl Points {
    /// Adds one. `false` if there are not enough points.
    pub fn add(&mut self, want: Want) -> bool {
        if self.wants.contains(&want) {
            return true;
        }
        self.wants.push(want);
        let fits = want.len > 0 && self.all().count() <= DEBUG_POINTS;
        if !fits {
            self.wants.pop();
        }
        fits
    }

    /// Removes one. `false` if it was not there.
    pub fn remove(&mut self, want: Want) -> bool {
        let before = self.wants.len();
        self.wants.retain(|other| *other != want);
        self.wants.len() != before
    }

    /// Whether it is there.
    pub fn contains(&self, want: Want) -> bool {
        self.wants.contains(&want)
    }

    /// As a processor takes them.
    pub fn to_control(&self) -> [Option<DebugPoint>; DEBUG_POINTS] {
        let mut points = self.all().map(|(_, point)| point);
        std::array::from_fn(|_| points.next())
    }

    /// What the point of this number belongs to.
    pub fn want_of(&self, number: u8) -> Option<Want> {
        self.all().nth(number.into()).map(|(want, _)| want)
    }

    /// A few more than there can be, at most: what is asked for may be long.
    fn all(&self) -> impl Iterator<Item = (Want, DebugPoint)> {
        self.wants
            .iter()
            .flat_map(|want| pieces(*want).map(|point| (*want, point)))
            .take(DEBUG_POINTS + 1)
    }
}

/// Cuts what is watched into points, which are aligned and as long as possible.
fn pieces(want: Want) -> impl Iterator<Item = DebugPoint> {
    let mut linear = want.linear;
    let mut left = if want.kind == PointKind::Execute { 1 } else { want.len };
    std::iter::from_fn(move || {
        let fits = |&len: &u64| len <= left && linear.is_multiple_of(len);
        let len = [8, 4, 2, 1].into_iter().find(fits)?;
        let point = DebugPoint { linear, len: len as u8, kind: want.kind };
        linear = linear.wrapping_add(len);
        left -= len;
        Some(point)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(linear: u64, len: u64) -> Want {
        Want { linear, len, kind: PointKind::Write }
    }

    #[test]
    fn long_and_crooked_ranges_take_several_points() {
        let lengths = |want| pieces(want).map(|p| (p.linear, p.len)).take(9).collect::<Vec<_>>();
        assert_eq!(lengths(watch(0x1000, 8)), [(0x1000, 8)]);
        assert_eq!(lengths(watch(0x1003, 8)), [(0x1003, 1), (0x1004, 4), (0x1008, 2), (0x100a, 1)]);
        assert_eq!(lengths(Want { kind: PointKind::Execute, ..watch(0x1003, 8) }), [(0x1003, 1)]);
    }

    #[test]
    fn there_are_four() {
        let mut points = Points::default();
        assert!(points.add(watch(0x1000, 24)));
        assert!(!points.add(watch(0x2001, 2)), "it takes two");
        assert!(!points.add(watch(0x2000, u64::MAX)));
        assert!(!points.add(watch(0x2000, 0)));
        assert!(points.add(watch(0x2000, 4)));
        assert!(points.add(watch(0x2000, 4)), "the same again");
        assert_eq!(points.want_of(2), Some(watch(0x1000, 24)));
        assert_eq!(points.want_of(3), Some(watch(0x2000, 4)));
        assert_eq!(points.want_of(4), None);
        assert!(points.remove(watch(0x1000, 24)) && !points.remove(watch(0x1000, 24)));
        assert_eq!(points.to_control().iter().flatten().count(), 1);
    }
}
