package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	maxFunctionLines = 70
	maxComplexity    = 15
	maxColumns       = 120
	maxTestColumns   = 140
)

func TestLayout(t *testing.T) {
	paths, _ := filepath.Glob("*.go")
	sources := make(map[string]string)
	for _, path := range paths {
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sources[path] = string(source)
	}
	for _, problem := range layoutProblems(t, sources) {
		t.Error(problem)
	}
}

// layoutProblems returns a sentence for each rule that the files break.
func layoutProblems(t *testing.T, sources map[string]string) (problems []string) {
	t.Helper()
	fset := token.NewFileSet()
	for path, source := range sources {
		columns := maxColumns
		if strings.HasSuffix(path, "_test.go") {
			columns = maxTestColumns
		} else {
			file, err := parser.ParseFile(fset, path, source, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			problems = append(problems, fileProblems(fset, path, file)...)
		}
		line := 0
		for text := range strings.Lines(source) {
			line++
			if n := utf8.RuneCountInString(strings.TrimSuffix(text, "\n")); n > columns {
				problems = append(problems, fmt.Sprintf("%s:%d: %d columns, at most %d", path, line, n, columns))
			}
		}
	}
	slices.Sort(problems)
	return slices.Compact(problems)
}

// fileProblems finds functions that are too long or too complex.
func fileProblems(fset *token.FileSet, path string, file *ast.File) (problems []string) {
	for _, decl := range file.Decls {
		function, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		start, end := fset.Position(function.Pos()), fset.Position(function.End())
		if lines := end.Line - start.Line + 1; lines > maxFunctionLines {
			problems = append(problems, fmt.Sprintf("%s: %s has %d lines, at most %d", start, function.Name, lines, maxFunctionLines))
		}
		if n := complexity(function); n > maxComplexity {
			problems = append(problems, fmt.Sprintf("%s: %s has complexity %d, at most %d", start, function.Name, n, maxComplexity))
		}
	}
	return problems
}

// complexity returns the cyclomatic complexity of a function, with that of the functions within it.
func complexity(function *ast.FuncDecl) int {
	n := 1
	ast.Inspect(function, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt:
			n++
		case *ast.CaseClause:
			n += min(len(node.List), 1) // not default
		case *ast.CommClause:
			if node.Comm != nil {
				n++
			}
		case *ast.BinaryExpr:
			if node.Op == token.LAND || node.Op == token.LOR {
				n++
			}
		}
		return true
	})
	return n
}

// The checks find what they are for.
func TestLayoutProblems(t *testing.T) {
	got := layoutProblems(t, map[string]string{
		"json.go":      "package main\n\nfunc parse() int {\n" + strings.Repeat("\tif true || false {\n\t}\n", 35) + "\treturn 0\n}\n",
		"telemetry.go": "package main\n\nfunc log(int) {} // " + strings.Repeat("é", maxColumns) + "\n",
		"x_test.go":    "package main\n\n// " + strings.Repeat("x", maxTestColumns-3) + "\n",
		"y_test.go":    "package main\n\n// " + strings.Repeat("x", maxTestColumns-2) + "\n",
	})
	want := []string{
		"json.go:3:1: parse has 73 lines, at most 70", "json.go:3:1: parse has complexity 71, at most 15",
		"telemetry.go:3: 140 columns, at most 120", "y_test.go:3: 141 columns, at most 140",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
