//! Aligned tables and lists for terminals.

/// Columns padded to their widest cell, two blanks apart; no blanks at line ends.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|h| h.to_string()).collect();
    let width = |column: usize| {
        let cells = std::iter::once(&header).chain(rows).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `key: value` lines with the values below each other.
pub fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    let mut out = String::new();
    for (key, value) in pairs {
        out.push_str(format!("{:width$} {value}", format!("{key}:")).trim_end());
        out.push('\n');
    }
    out
}

/// What stands where there is nothing to say.
pub const NOTHING: &str = "-";

/// The value, or a dash.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NOTHING.to_string(), |v| v.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["ds1".into(), "up".into()], vec!["archive".into(), "".into()]];
        assert_eq!(table(&["NAME", "STATE"], &rows), "NAME     STATE\nds1      up\narchive\n");
    }

    #[test]
    fn facts_line_up() {
        assert_eq!(facts(&[("name", "vm42".into()), ("pid", or_dash::<u32>(None))]), "name: vm42\npid:  -\n");
    }
}
