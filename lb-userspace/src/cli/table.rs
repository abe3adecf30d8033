//! Tables of at most a hundred columns, and no wider than the terminal.

use std::io::IsTerminal as _;

use ratatui::crossterm::terminal;

/// Columns of a line at most.
const WIDTH: usize = 100;
/// A terminal narrower than this is taken for one of this width.
const NARROWEST: usize = 60;
/// Columns before each line.
const INDENT: usize = 2;

/// Columns that a line may take.
fn width() -> usize {
    let terminal = std::io::stdout().is_terminal().then(terminal::size).and_then(Result::ok);
    terminal.map_or(WIDTH, |(columns, _)| usize::from(columns).clamp(NARROWEST, WIDTH))
}

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Colour of a row's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Plain,
    Green,
    Yellow,
    Red,
}

/// Rows under a headline. The column `STATE` is coloured; the last one is cut where a line would be too long.
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<(Colour, Vec<String>)>,
    width: usize,
}

/// How a table is laid out.
struct Shape {
    widths: Vec<usize>,
    indent: usize,
    gap: usize,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new(), width: width() }
    }

    /// Adds a row: a cell for each column.
    pub(super) fn row(&mut self, colour: Colour, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().collect();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push((colour, cells));
    }

    /// The lines, each ended.
    pub(super) fn render(&self, colours: bool) -> String {
        let Shape { widths, indent, gap } = self.shape();
        let mut text = String::new();
        let names = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        for (colour, cells) in std::iter::once(&(Colour::Plain, names)).chain(&self.rows) {
            let mut line = " ".repeat(indent);
            for (place, ((cell, width), (name, align))) in
                cells.iter().zip(&widths).zip(&self.columns).enumerate()
            {
                let cell = cut(cell, *width);
                let fill = " ".repeat(width - cell.chars().count());
                let gap = if place == 0 { String::new() } else { " ".repeat(gap) };
                let cell = if *name == "STATE" && colours { painted(&cell, *colour) } else { cell };
                line += &gap;
                line += &match align {
                    Align::Left => cell + &fill,
                    Align::Right => fill + &cell,
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// Whether this cell of the last column is shown in part only.
    pub(super) fn cuts(&self, cell: &str) -> bool {
        self.shape().widths.last().is_some_and(|width| cell.chars().count() > *width)
    }

    /// As it fits: the last column gives way first, then the gaps, then the widest of the others.
    fn shape(&self) -> Shape {
        let mut natural: Vec<_> = self.columns.iter().map(|(name, _)| name.len()).collect();
        for (_, cells) in &self.rows {
            for (width, cell) in natural.iter_mut().zip(cells) {
                *width = cell.chars().count().max(*width);
            }
        }
        let wide = self.fitted(natural.clone(), INDENT, 2);
        if wide.length() <= self.width {
            return wide;
        }
        let mut narrow = self.fitted(natural, 0, 1);
        while narrow.length() > self.width {
            let Some(widest) = narrow.widths.iter_mut().max() else { break };
            *widest -= 1;
        }
        narrow
    }

    fn fitted(&self, mut widths: Vec<usize>, indent: usize, gap: usize) -> Shape {
        // Words may be cut, figures not.
        let gives_way = self.columns.last().is_some_and(|(_, align)| *align == Align::Left);
        if let Some((last, rest)) = widths.split_last_mut().filter(|_| gives_way) {
            let before = indent + rest.iter().sum::<usize>() + gap * rest.len();
            let least = self.columns.last().map_or(0, |(name, _)| name.len());
            *last = (*last).min(self.width.saturating_sub(before)).max(least);
        }
        Shape { widths, indent, gap }
    }
}

impl Shape {
    fn length(&self) -> usize {
        self.indent + self.widths.iter().sum::<usize>() + self.gap * self.widths.len().saturating_sub(1)
    }
}

/// A text in lines that fit, each ended, those after the first indented.
pub(super) fn wrapped(text: &str) -> String {
    indented(text, INDENT, 2 * INDENT)
}

/// The same with other indents: of the first line, and of those after it.
pub(super) fn indented(text: &str, first: usize, rest: usize) -> String {
    let width = width();
    let mut lines = String::new();
    let mut line = " ".repeat(first);
    for word in text.split_whitespace() {
        let fresh = line.trim().is_empty();
        if !fresh && line.chars().count() + 1 + word.chars().count() > width {
            lines += &line;
            lines.push('\n');
            line = " ".repeat(rest) + word;
        } else {
            line += if fresh { "" } else { " " };
            line += word;
        }
    }
    lines += &line;
    lines.push('\n');
    lines
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let mut short: String = cell.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

fn painted(text: &str, colour: Colour) -> String {
    let code = match colour {
        Colour::Plain => return text.to_owned(),
        Colour::Red => 31,
        Colour::Green => 32,
        Colour::Yellow => 33,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_cells_give_way_and_lines_fit() {
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right), ("WHY", Align::Left)]);
        table.row(Colour::Plain, ["n".repeat(150), "7".into(), "y".repeat(150)]);
        let text = table.render(false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains(" 7 "));
    }

    #[test]
    fn a_narrow_terminal_gets_narrow_gaps_before_cells_are_cut() {
        let columns = ["BACKEND", "ADDRESS", "STATE", "ETCD", "FLOWS", "SLOTS", "CHECKED", "SINCE", "REASON"];
        let cells = [
            "etcd-1",
            "10.0.1.11:2379",
            "healthy",
            "3.4.23 leader",
            "4",
            "33.3 %",
            "370 ms",
            "1 s",
            "probe passed",
        ];
        let of_width = |width| {
            let mut table = Table::new(&columns.map(|name| (name, Align::Left)));
            table.width = width;
            table.row(Colour::Plain, cells.map(str::to_owned));
            table.render(false)
        };
        let (wide, narrow) = (of_width(100), of_width(80));
        assert!(wide.contains("  etcd-1   10.0.1.11:2379  healthy  3.4.23 leader  "), "{wide}");
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(
            narrow.contains("10.0.1.11:2379 healthy 3.4.23 leader") && narrow.contains("probe p…"),
            "{narrow}"
        );
    }
}
