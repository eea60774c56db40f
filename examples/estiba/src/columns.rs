//! Text in columns, as Go's text/tabwriter lays it out with Docker's settings: cells end with a tab, are at least ten
//! characters wide, and have three spaces behind them.

const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// Lays the lines out. A column is as wide as the cells of the lines that have it one below the other.
pub(crate) fn align(text: &str) -> String {
    aligned(text, MIN_WIDTH, PADDING)
}

/// The same with other widths: `docker top` has its own.
pub(crate) fn aligned(text: &str, min_width: usize, padding: usize) -> String {
    let ends_line = text.ends_with('\n');
    let body = text.strip_suffix('\n').unwrap_or(text);
    let lines: Vec<Vec<&str>> = body.split('\n').map(|line| line.split('\t').collect()).collect();
    // The width of each cell that a tab ends.
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut start = 0;
        while start < lines.len() {
            let block = widths[start..].iter().take_while(|widths| widths.len() > column).count();
            if block == 0 {
                start += 1;
                continue;
            }
            let cells = lines[start..start + block].iter().map(|cells| cells[column].chars().count());
            let width = cells.map(|width| width + padding).max().unwrap_or(0);
            // A column of empty cells still has its least width.
            let width = width.max(min_width);
            for widths in &mut widths[start..start + block] {
                widths[column] = width;
            }
            start += block;
        }
    }
    let mut out = String::with_capacity(text.len() * 2);
    for (index, (cells, widths)) in lines.iter().zip(&widths).enumerate() {
        if index > 0 {
            out.push('\n');
        }
        for (cell, width) in cells.iter().zip(widths.iter().copied().map(Some).chain([None])) {
            out.push_str(cell);
            if let Some(width) = width {
                out.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
        }
    }
    if ends_line {
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Docker prints.
    #[test]
    fn columns_line_up() {
        for (text, expected) in [
            ("NAMES\tIMAGE\none\tbb:1\n", "NAMES     IMAGE\none       bb:1\n"),
            ("A\tB\tC\n1\t2\t3\n", "A         B         C\n1         2         3\n"),
            ("CONTAINER ID\tSTATUS\te441aae0ebf5\tx\n", "CONTAINER ID   STATUS    e441aae0ebf5   x\n"),
            // A line without tabs ends the column.
            ("a\tb\nplain\nlonger than ten\tb\n", "a         b\nplain\nlonger than ten   b\n"),
            ("a\t\tc\n", "a                   c\n"),
            ("é\tb", "é         b"),
            ("", ""),
            ("\n", "\n"),
        ] {
            assert_eq!(align(text), expected, "{text:?}");
        }
    }
}
