//! The colours of a printed line as spans with classes: what pages show without scripts. With
//! them, `assets/ansi.js` shows every colour there is; here each becomes the nearest of sixteen.

/// A part of a line in one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its classes; nothing for plain text.
    pub class: String,
    /// What it says.
    pub text: String,
}

/// The sixteen colours as terminals have them, to find the nearest by.
const BASE: [(i32, i32, i32); 16] = [
    (0, 0, 0),
    (205, 49, 49),
    (13, 188, 121),
    (229, 229, 16),
    (36, 114, 200),
    (188, 63, 188),
    (17, 168, 205),
    (229, 229, 229),
    (102, 102, 102),
    (241, 76, 76),
    (35, 209, 139),
    (245, 245, 67),
    (59, 142, 234),
    (214, 112, 214),
    (41, 184, 219),
    (255, 255, 255),
];

/// The six levels of a channel in the cube of 216 colours.
const LEVELS: [i32; 6] = [0, 95, 135, 175, 215, 255];

#[derive(Clone, Copy, Default)]
struct Look {
    colour: Option<usize>,
    ground: Option<usize>,
    bold: bool,
    dim: bool,
    italic: bool,
    underline: bool,
    inverse: bool,
}

/// The parts of a line; it holds no other escapes than colours.
pub fn spans(line: &str) -> Vec<Span> {
    let mut look = Look::default();
    let mut spans = Vec::new();
    let mut add = |look: Look, text: &str| {
        if !text.is_empty() {
            spans.push(Span { class: look.class(), text: text.to_owned() });
        }
    };
    let mut parts = line.split("\u{1b}[");
    add(look, parts.next().unwrap_or_default());
    for part in parts {
        let (numbers, text) = part.split_once('m').unwrap_or((part, ""));
        look.set(numbers);
        add(look, text);
    }
    spans
}

impl Look {
    fn set(&mut self, numbers: &str) {
        let mut numbers = numbers.split([';', ':']).map(|it| it.parse().unwrap_or(0));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                3 => self.italic = true,
                4 => self.underline = true,
                7 => self.inverse = true,
                22 => (self.bold, self.dim) = (false, false),
                23 => self.italic = false,
                24 => self.underline = false,
                27 => self.inverse = false,
                30..=37 => self.colour = Some(number - 30),
                38 => self.colour = extended(&mut numbers),
                39 => self.colour = None,
                40..=47 => self.ground = Some(number - 40),
                48 => self.ground = extended(&mut numbers),
                49 => self.ground = None,
                90..=97 => self.colour = Some(number - 82),
                100..=107 => self.ground = Some(number - 92),
                _ => {}
            }
        }
    }

    fn class(self) -> String {
        let (colour, ground) =
            if self.inverse { (self.ground, self.colour) } else { (self.colour, self.ground) };
        let flags = [
            (self.bold, "bold"),
            (self.dim, "dim"),
            (self.italic, "italic"),
            (self.underline, "under"),
            (self.inverse && ground.is_none(), "inverse"),
            (ground.is_some(), "on"),
        ];
        colour
            .map(|colour| format!("f{colour}"))
            .into_iter()
            .chain(ground.map(|ground| format!("b{ground}")))
            .chain(flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A colour of 256, or one of red, green and blue, as the nearest of sixteen.
fn extended(numbers: &mut impl Iterator<Item = usize>) -> Option<usize> {
    match numbers.next()? {
        5 => Some(match numbers.next()? {
            index @ 0..=15 => index,
            index @ 16..=231 => {
                let level = |step: usize| LEVELS[(index - 16) / step % 6];
                nearest((level(36), level(6), level(1)))
            }
            index => {
                let grey = 8 + 10 * (index.min(255) as i32 - 232);
                nearest((grey, grey, grey))
            }
        }),
        2 => {
            let mut channel = || numbers.next().map(|it| it.min(255) as i32);
            Some(nearest((channel()?, channel()?, channel()?)))
        }
        _ => None,
    }
}

fn nearest((red, green, blue): (i32, i32, i32)) -> usize {
    let far =
        |(r, g, b): (i32, i32, i32)| (r - red).pow(2) + (g - green).pow(2) + (b - blue).pow(2);
    (0..BASE.len()).min_by_key(|index| far(BASE[*index])).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Vec<(String, String)> {
        spans(line).into_iter().map(|span| (span.class, span.text)).collect()
    }

    #[test]
    fn each_look_has_its_classes() {
        for (line, expected) in [
            ("plain", vec![("", "plain")]),
            ("\u{1b}[31mred\u{1b}[0m!", vec![("f1", "red"), ("", "!")]),
            ("\u{1b}[1;92mok\u{1b}[22;39m.", vec![("f10 bold", "ok"), ("", ".")]),
            ("\u{1b}[41mx\u{1b}[49my", vec![("b1 on", "x"), ("", "y")]),
            ("\u{1b}[7mx\u{1b}[31my", vec![("inverse", "x"), ("b1 on", "y")]),
            ("\u{1b}[2;3;4mx\u{1b}[23;24my", vec![("dim italic under", "x"), ("dim", "y")]),
            ("\u{1b}[38;5;9mx\u{1b}[38;5;196my", vec![("f9", "x"), ("f1", "y")]),
            ("\u{1b}[38;2;250;250;250mx\u{1b}[48:5:232my", vec![("f15", "x"), ("f15 b0 on", "y")]),
            ("\u{1b}[my", vec![("", "y")]),
            ("", vec![]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(class, text)| (class.into(), text.into())).collect();
            assert_eq!(told(line), expected, "{line:?}");
        }
    }

    #[test]
    fn any_number_of_anything_is_read() {
        for line in
            ["\u{1b}[38;5m", "\u{1b}[38;2;1mx", "\u{1b}[38;5;999mx", "\u{1b}[;;mx", "\u{1b}[31"]
        {
            spans(line);
        }
    }

    fn sheet(name: &str) -> String {
        let url = super::super::assets::url(name);
        let asset = super::super::assets::get(url.strip_prefix("/assets/").unwrap()).unwrap();
        String::from_utf8(asset.bytes.to_vec()).unwrap()
    }

    /// The light and the dark form of a colour of a style sheet.
    fn pair(sheet: &str, name: &str) -> [String; 2] {
        let (_, rest) = sheet.split_once(&format!("{name}: light-dark(")).expect("it is there");
        let (light, dark) = rest.split_once(')').unwrap().0.split_once(", ").unwrap();
        [light.to_owned(), dark.to_owned()]
    }

    /// Source: WCAG 2.2, relative luminance.
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    fn contrast(one: &str, other: &str) -> f64 {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn every_colour_can_be_read_in_light_and_in_dark() {
        let (tokens, log) = (sheet("tokens.css"), sheet("log.css"));
        let [ground, marked, on] =
            ["--sunk", "--now-ground", "--on-accent"].map(|name| pair(&tokens, name));
        for index in 0..16 {
            let colour = pair(&log, &format!("--ansi-{index}"));
            for scheme in 0..2 {
                for against in [&ground[scheme], &marked[scheme], &on[scheme]] {
                    let contrast = contrast(&colour[scheme], against);
                    assert!(
                        contrast >= 4.5,
                        "{index}: {} on {against}: {contrast}",
                        colour[scheme]
                    );
                }
            }
        }
    }
}
