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

// TestLayout keeps files, functions and lines short. Which package may use which, the compiler keeps.
func TestLayout(t *testing.T) {
	own, _ := filepath.Glob("*.go")
	internal, _ := filepath.Glob("internal/*/*.go")
	examples, _ := filepath.Glob("docs/examples/*/*.go")
	for _, path := range slices.Concat(own, internal, examples) {
		source, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		for _, problem := range layoutProblems(path, string(source)) {
			t.Error(problem)
		}
	}
	bad := "package main\n\nfunc f() {\n" + strings.Repeat("\tif true || false {\n\t}\n", 50) +
		"} // " + strings.Repeat("é", 136) + strings.Repeat("\n", 500)
	for path, want := range map[string]int{"x.go": 4, "x_test.go": 2} {
		if got := layoutProblems(path, bad); len(got) != want {
			t.Errorf("%s: got %d problems: %q, want %d", path, len(got), got, want)
		}
	}
}

// layoutProblems returns a sentence for each bound that a file exceeds.
func layoutProblems(path, source string) (problems []string) {
	atMost := map[string]int{"lines": 500, "columns": 120, "lines of a function": 60, "complexity": 15}
	if strings.HasSuffix(path, "_test.go") {
		atMost = map[string]int{"lines": 1 << 20, "columns": 140, "lines of a function": 100, "complexity": 1 << 20}
	}
	check := func(line, n int, of string) {
		if n > atMost[of] {
			problems = append(problems, fmt.Sprintf("%s:%d: %d %s, at most %d", path, line, n, of, atMost[of]))
		}
	}
	lines := strings.Split(source, "\n")
	check(1, len(lines)-1, "lines")
	for i, line := range lines {
		check(i+1, utf8.RuneCountInString(line), "columns")
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, source, parser.SkipObjectResolution)
	if err != nil {
		return append(problems, err.Error())
	}
	for _, decl := range file.Decls {
		if function, ok := decl.(*ast.FuncDecl); ok {
			from, to := files.Position(function.Pos()).Line, files.Position(function.End()).Line
			check(from, to-from+1, "lines of a function")
			complexity := 1
			ast.Inspect(function, func(node ast.Node) bool {
				switch node := node.(type) {
				case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt, *ast.CaseClause, *ast.CommClause:
					complexity++
				case *ast.BinaryExpr:
					if node.Op == token.LAND || node.Op == token.LOR {
						complexity++
					}
				}
				return true
			})
			check(from, complexity, "complexity")
		}
	}
	return problems
}
