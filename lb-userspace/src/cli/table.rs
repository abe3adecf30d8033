//! Tables of at most a hundred columns.

/// Columns of a line at most.
const WIDTH: usize = 100;
/// Columns before each line.
const INDENT: usize = 2;

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
}

impl Table {
    /// A table without rows.
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: a cell for each column.
    pub(super) fn row(&mut self, colour: Colour, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().collect();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push((colour, cells));
    }

    /// The lines, each ended.
    pub(super) fn render(&self, colours: bool) -> String {
        let widths = self.widths();
        let mut text = String::new();
        let names = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        for (colour, cells) in std::iter::once(&(Colour::Plain, names)).chain(&self.rows) {
            let mut line = " ".repeat(INDENT);
            for (place, ((cell, width), (name, align))) in
                cells.iter().zip(&widths).zip(&self.columns).enumerate()
            {
                let cell = cut(cell, *width);
                let fill = " ".repeat(width - cell.chars().count());
                let gap = if place == 0 { "" } else { "  " };
                let cell = if *name == "STATE" && colours { painted(&cell, *colour) } else { cell };
                line += gap;
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
        self.widths().last().is_some_and(|width| cell.chars().count() > *width)
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<_> = self.columns.iter().map(|(name, _)| name.len()).collect();
        for (_, cells) in &self.rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = cell.chars().count().max(*width);
            }
        }
        // The last column gives way first, then the widest of the others.
        let line =
            |widths: &[usize]| INDENT + widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        if let Some((last, rest)) = widths.split_last_mut() {
            let before = INDENT + rest.iter().sum::<usize>() + 2 * rest.len();
            let least = self.columns.last().map_or(0, |(name, _)| name.len());
            *last = (*last).min(WIDTH.saturating_sub(before)).max(least);
        }
        while line(&widths) > WIDTH {
            let Some(widest) = widths.iter_mut().max() else { break };
            *widest -= 1;
        }
        widths
    }
}

/// A text in lines that fit, each ended, those after the first indented.
pub(super) fn wrapped(text: &str) -> String {
    indented(text, INDENT, 2 * INDENT)
}

/// The same with other indents: of the first line, and of those after it.
pub(super) fn indented(text: &str, first: usize, rest: usize) -> String {
    let mut lines = String::new();
    let mut line = " ".repeat(first);
    for word in text.split_whitespace() {
        let fresh = line.trim().is_empty();
        if !fresh && line.chars().count() + 1 + word.chars().count() > WIDTH {
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
        assert!(text.contains("  7  "));
    }
}
