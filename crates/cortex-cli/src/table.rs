//! Aligned columns. A cell is made of words; where the terminal is too narrow, the widest cells break between words. A cell with
//! nothing to its right runs on over the empty columns and does not widen its own.

use crate::style::{Ink, Style};

const GAP: &str = "  ";

/// Text that is never broken, in one or more inks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Word(Vec<(Ink, String)>);

impl Word {
    /// A word in one ink.
    pub(crate) fn new(ink: Ink, text: impl Into<String>) -> Self {
        Self(vec![(ink, text.into())])
    }

    /// Goes on in another ink.
    pub(crate) fn then(mut self, ink: Ink, text: impl Into<String>) -> Self {
        self.0.push((ink, text.into()));
        self
    }

    fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }

    fn write(&self, style: Style, out: &mut String) {
        self.0.iter().for_each(|(ink, text)| out.push_str(&style.paint(*ink, text)));
    }
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    words: Vec<Word>,
    /// Spaces between words.
    gap: usize,
}

impl Cell {
    /// Words with one space between them.
    pub(crate) fn sentence(ink: Ink, text: &str) -> Self {
        Self { words: text.split(' ').map(|word| Word::new(ink, word)).collect(), gap: 1 }
    }

    /// One text that is never broken.
    pub(crate) fn solid(ink: Ink, text: impl Into<String>) -> Self {
        Self::list(vec![Word::new(ink, text)])
    }

    /// Phrases with commas between them.
    pub(crate) fn enumeration(phrases: &[String]) -> Self {
        let word = |(at, phrase): (usize, &String)| {
            let comma = if at + 1 < phrases.len() { "," } else { "" };
            Word::new(Ink::Plain, format!("{phrase}{comma}"))
        };
        Self { words: phrases.iter().enumerate().map(word).collect(), gap: 1 }
    }

    /// Words with two spaces between them.
    pub(crate) fn list(words: Vec<Word>) -> Self {
        Self { words, gap: 2 }
    }

    fn width(&self) -> usize {
        self.words.iter().map(Word::width).sum::<usize>() + self.gap * self.words.len().saturating_sub(1)
    }

    fn width_min(&self) -> usize {
        self.words.iter().map(Word::width).max().unwrap_or(0)
    }

    /// The cell's words in lines of at most `width` columns, as far as words allow.
    fn wrap(&self, width: usize) -> Vec<Self> {
        let mut lines: Vec<Self> = Vec::new();
        for word in &self.words {
            match lines.last_mut() {
                Some(line) if line.width() + self.gap + word.width() <= width => line.words.push(word.clone()),
                _ => lines.push(Self { words: vec![word.clone()], gap: self.gap }),
            }
        }
        lines
    }

    fn write(&self, style: Style, out: &mut String) {
        for (at, word) in self.words.iter().enumerate() {
            if at > 0 {
                out.extend(std::iter::repeat_n(' ', self.gap));
            }
            word.write(style, out);
        }
    }
}

/// Rows of equally many cells under headings.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these headings and no rows.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| Cell::solid(Ink::Bold, *heading)).collect()] }
    }

    /// Adds a row with as many cells as there are headings.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.rows[0].len(), "as many cells as headings");
        self.rows.push(cells);
    }

    /// The width that no wrapping can undercut.
    pub(crate) fn width_min(&self) -> usize {
        self.total(&self.column_widths(Cell::width_min))
    }

    /// One line of text per line of the table, each ended by a line feed.
    pub(crate) fn render(&self, style: Style) -> String {
        let widths = self.fit(style.width);
        let mut out = String::new();
        for row in &self.rows {
            let columns: Vec<Vec<Cell>> = (0..row.len()).map(|at| row[at].wrap(self.room(row, at, &widths, style.width))).collect();
            let height = columns.iter().map(Vec::len).max().unwrap_or(0);
            for line in 0..height {
                let cells = columns.iter().map(|lines| lines.get(line).cloned().unwrap_or_default());
                write_line(cells.zip(&widths), style, &mut out);
            }
        }
        out
    }

    /// Column widths: natural ones, or narrowed from the widest on until the table fits.
    fn fit(&self, width: Option<usize>) -> Vec<usize> {
        let mut widths = self.column_widths(Cell::width);
        let least = self.column_widths(Cell::width_min);
        while width.is_some_and(|width| self.total(&widths) > width) {
            let narrowable = (0..widths.len()).filter(|&at| widths[at] > least[at]);
            match narrowable.max_by_key(|&at| widths[at]) {
                Some(at) => widths[at] -= 1,
                None => break,
            }
        }
        widths
    }

    fn column_widths(&self, of: fn(&Cell) -> usize) -> Vec<usize> {
        let columns = self.rows[0].len();
        let rows = |at| self.rows.iter().filter(move |row| at + 1 == columns || !runs_on(row, at));
        (0..columns).map(|at| rows(at).map(|row| of(&row[at])).max().unwrap_or(0)).collect()
    }

    /// How wide the cell `at` of `row` may be.
    fn room(&self, row: &[Cell], at: usize, widths: &[usize], width: Option<usize>) -> usize {
        if !runs_on(row, at) {
            return widths[at];
        }
        let before = self.total(&widths[..at]) + if at > 0 { GAP.len() } else { 0 };
        width.map_or(usize::MAX, |width| width.saturating_sub(before).max(widths[at]))
    }

    fn total(&self, widths: &[usize]) -> usize {
        widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
    }
}

/// True when nothing stands to the right of the cell `at`.
fn runs_on(row: &[Cell], at: usize) -> bool {
    row[at + 1..].iter().all(|cell| cell.words.is_empty())
}

/// Writes cells padded to their widths, without spaces at the end of the line.
fn write_line<'a>(cells: impl Iterator<Item = (Cell, &'a usize)>, style: Style, out: &mut String) {
    let mut owed = 0;
    for (at, (cell, width)) in cells.enumerate() {
        owed += if at > 0 { GAP.len() } else { 0 };
        if !cell.words.is_empty() && cell.width() > 0 {
            out.extend(std::iter::repeat_n(' ', std::mem::take(&mut owed)));
            cell.write(style, out);
        }
        owed += width.saturating_sub(cell.width());
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", "MODELS", "LOAD"]);
        let models = ["qwen3-8b", "llama", "bert"].map(|name| Word::new(Ink::Plain, name).then(Ink::Good, " ●"));
        table.row(vec![Cell::solid(Ink::Plain, "a"), Cell::list(models.to_vec()), Cell::sentence(Ink::Plain, "12 running")]);
        table.row(vec![Cell::solid(Ink::Plain, "longer"), Cell::default(), Cell::sentence(Ink::Plain, "0 running")]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_end_without_spaces() {
        insta::assert_snapshot!(sample().render(Style::PLAIN), @r"
        NAME    MODELS                       LOAD
        a       qwen3-8b ●  llama ●  bert ●  12 running
        longer                               0 running
        ");
    }

    #[test]
    fn a_narrow_terminal_breaks_the_widest_cells_between_words() {
        insta::assert_snapshot!(sample().render(Style { colour: false, width: Some(38) }), @r"
        NAME    MODELS              LOAD
        a       qwen3-8b ●          12 running
                llama ●  bert ●
        longer                      0 running
        ");
        insta::assert_snapshot!(sample().render(Style { colour: false, width: Some(10) }), @r"
        NAME    MODELS      LOAD
        a       qwen3-8b ●  12
                llama ●     running
                bert ●
        longer              0
                            running
        ");
    }

    #[test]
    fn the_last_cell_of_a_row_runs_on_over_empty_columns() {
        let mut table = sample();
        let reason = Cell::sentence(Ink::Plain, "the connection was refused some time ago");
        table.row(vec![reason, Cell::default(), Cell::default()]);
        insta::assert_snapshot!(table.render(Style::PLAIN), @r"
        NAME    MODELS                       LOAD
        a       qwen3-8b ●  llama ●  bert ●  12 running
        longer                               0 running
        the connection was refused some time ago
        ");
        insta::assert_snapshot!(table.render(Style { colour: false, width: Some(38) }), @r"
        NAME    MODELS              LOAD
        a       qwen3-8b ●          12 running
                llama ●  bert ●
        longer                      0 running
        the connection was refused some time
        ago
        ");
    }

    #[test]
    fn colour_does_not_move_a_column() {
        let coloured = sample().render(Style { colour: true, width: None });
        let mut stripped = coloured.clone();
        for code in ["1", "32", "0"] {
            stripped = stripped.replace(&format!("\x1b[{code}m"), "");
        }
        assert_ne!(coloured, stripped);
        assert_eq!(stripped, sample().render(Style::PLAIN));
    }
}
