//! The paths of tiles (C2SP tlog-tiles): `0/x001/x234/067` is tile 1234067 of level 0,
//! `0/067.p/8` the first 8 hashes of tile 67.

use super::tree::{LEVELS_MAX, TILE_WIDTH, TileId};

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilePath {
    /// Hashes of a level; `None` for the entries themselves.
    pub level: Option<u8>,
    /// Which tile.
    pub index: u64,
    /// How many of its hashes or entries: 256 unless the path says a part.
    pub width: usize,
}

impl TilePath {
    /// Reads what stands behind `/log/tile/`. There is one way to write each.
    pub fn parse(path: &str) -> Option<Self> {
        let (first, rest) = path.split_once('/')?;
        let level = if first == "entries" { None } else { Some(level(first)?) };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, part(width)?),
            None => (rest, TILE_WIDTH),
        };
        let index = number_of(number)?;
        Some(Self { level, index, width })
    }

    /// Whether it never changes: a part of a tile may be gone when the tile is full.
    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The tile of hashes it asks for; for entries, that of their leaves.
    pub fn tile(&self) -> TileId {
        TileId { level: self.level.unwrap_or(0), index: self.index }
    }
}

/// The path of a tile below `/log/tile/`, for a width.
pub fn of_tile(id: TileId, width: usize) -> String {
    let mut number = format!("{:03}", id.index % 1_000);
    let mut rest = id.index / 1_000;
    while rest > 0 {
        number = format!("x{:03}/{number}", rest % 1_000);
        rest /= 1_000;
    }
    if width == TILE_WIDTH {
        format!("{}/{number}", id.level)
    } else {
        format!("{}/{number}.p/{width}", id.level)
    }
}

fn level(text: &str) -> Option<u8> {
    let level: u8 = text.parse().ok()?;
    (level.to_string() == text && usize::from(level) < LEVELS_MAX).then_some(level)
}

fn part(text: &str) -> Option<usize> {
    let width: usize = text.parse().ok()?;
    (width.to_string() == text && (1..TILE_WIDTH).contains(&width)).then_some(width)
}

fn number_of(text: &str) -> Option<u64> {
    let parts: Vec<&str> = text.split('/').collect();
    let (last, before) = parts.split_last()?;
    let mut index: u64 = 0;
    for part in before {
        index = index.checked_mul(1_000)?.checked_add(three(part.strip_prefix('x')?)?)?;
    }
    // Without a first group of zeros, or a number would have two paths.
    let canonical = before.first().is_none_or(|first| *first != "x000");
    let index = index.checked_mul(1_000)?.checked_add(three(last)?)?;
    // What is in the log fits a signed number.
    (canonical && index <= i64::MAX as u64 / TILE_WIDTH as u64).then_some(index)
}

fn three(digits: &str) -> Option<u64> {
    let whole = digits.len() == 3 && digits.bytes().all(|it| it.is_ascii_digit());
    whole.then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        let hashes = |level, index, width| Some(TilePath { level: Some(level), index, width });
        for (path, expected) in [
            ("0/x001/x234/067", hashes(0, 1_234_067, 256)),
            ("0/000", hashes(0, 0, 256)),
            ("3/067.p/8", hashes(3, 67, 8)),
            ("0/x001/000.p/255", hashes(0, 1_000, 255)),
            ("entries/x001/067", Some(TilePath { level: None, index: 1_067, width: 256 })),
            ("entries/067.p/1", Some(TilePath { level: None, index: 67, width: 1 })),
        ] {
            assert_eq!(TilePath::parse(path), expected, "{path}");
        }
        for wrong in [
            "",
            "0",
            "0/",
            "0/1",
            "0/0001",
            "0/x001",
            "0/001/002",
            "0/x000/001",
            "00/001",
            "8/000",
            "-1/000",
            "0/000.p/0",
            "0/000.p/256",
            "0/000.p/01",
            "0/000.p/",
            "0/000.p",
            "data/000",
            "0/x001/x1/000",
            "0/000/",
            "/0/000",
            "0/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(TilePath::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for (level, index, width) in
            [(0, 0, 256), (0, 999, 1), (1, 1_000, 256), (2, 1_234_067, 17), (7, 70_368_744, 255)]
        {
            let path = of_tile(TileId { level, index }, width);
            assert_eq!(TilePath::parse(&path), Some(TilePath { level: Some(level), index, width }));
        }
    }
}
