package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// layout has the files of the program from top to bottom. Each may use only what those below it declare.
var layout = []string{
	"main.go", "listener.go", "settings.go", "handlers.go", "admin.go", "gateway.go", "relay.go", "responsecache.go",
	"provider.go", "settler.go", "signin.go", "cors.go", "middleware.go", "usage.go", "idtoken.go", "users.go", "holds.go",
	"keys.go", "store.go", "cache.go", "cluster.go", "sentinel.go", "slots.go", "redis.go", "sharedconn.go", "redisurl.go",
	"tenant.go", "json.go", "telemetry.go", "wirestream.go", "wire.go", "jsonwalk.go",
}

// leaves are the last files of layout, with what they may use.
var leaves = map[string][]string{
	"tenant.go": {"json.go", "wire.go"}, "json.go": nil, "telemetry.go": nil,
	"wire.go": {"jsonwalk.go"}, "wirestream.go": {"wire.go", "jsonwalk.go"}, "jsonwalk.go": nil,
}

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
	var files []*ast.File
	for path, source := range sources {
		columns := maxColumns
		if strings.HasSuffix(path, "_test.go") {
			columns = maxTestColumns
		} else {
			file, err := parser.ParseFile(fset, path, source, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
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
	problems = append(problems, useProblems(t, fset, files)...)
	slices.Sort(problems)
	return slices.Compact(problems)
}

// fileProblems finds a file that has no place in layout, and functions that are too long or too complex.
func fileProblems(fset *token.FileSet, path string, file *ast.File) (problems []string) {
	if !slices.Contains(layout, path) {
		problems = append(problems, path+": not in layout, which says what it may use")
	}
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

// useProblems finds every use of a function, type, constant, variable, method or field that is declared further up.
func useProblems(t *testing.T, fset *token.FileSet, files []*ast.File) (problems []string) {
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", exportData(t, files)), Error: func(error) {}}
	info := types.Info{Uses: make(map[*ast.Ident]types.Object)}
	pkg, _ := config.Check("main", fset, files, &info) // what does not compile is another test's concern
	for ident, object := range info.Uses {
		if object.Pkg() != pkg || object.Parent() != nil && object.Parent() != pkg.Scope() {
			continue // imported, or local to a function; methods and fields have no parent
		}
		use, owner := fset.Position(ident.Pos()), fset.Position(object.Pos()).Filename
		user := use.Filename
		allowed, leaf := leaves[user]
		if slices.Index(layout, owner) < slices.Index(layout, user) || leaf && user != owner && !slices.Contains(allowed, owner) {
			problems = append(problems, fmt.Sprintf("%s:%d: uses %s of %s", user, use.Line, object.Name(), owner))
		}
	}
	return problems
}

// exportData returns how to find the compiled form of the packages that files import, without which the type checker
// would not know the types of calls into them.
func exportData(t *testing.T, files []*ast.File) importer.Lookup {
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}"}
	for _, file := range files {
		for _, spec := range file.Imports {
			args = append(args, strings.Trim(spec.Path.Value, `"`))
		}
	}
	var stderr bytes.Buffer
	list := exec.Command("go", args...)
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	exports := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		path, export, _ := strings.Cut(strings.TrimSpace(line), " ")
		exports[path] = export
	}
	return func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
}

// The checks find what they are for.
func TestLayoutProblems(t *testing.T) {
	got := layoutProblems(t, map[string]string{
		"main.go": "package main\n\nfunc main() { handle() }\n\ntype config struct{ port int }\n",
		"handlers.go": "package main\n\nimport \"sync/atomic\"\n\nfunc handle() { new(server).show() }\n\nfunc (s *server) show() {}\n" +
			"\nvar current atomic.Pointer[config]\n\nfunc port() int { return s().port }\n",
		"middleware.go": "package main\n\ntype server struct{}\n\nfunc (s *server) all() { s.show() }\n",
		"store.go":      "package main\n\nfunc s() *config { return current.Load() }\n",
		"tenant.go":     "package main\n\nvar n = parse()\n\nfunc tenant() { log(n) }\n",
		"json.go":       "package main\n\nfunc parse() int {\n" + strings.Repeat("\tif true || false {\n\t}\n", 35) + "\treturn 0\n}\n",
		"telemetry.go":  "package main\n\nfunc log(int) {} // " + strings.Repeat("é", maxColumns) + "\n",
		"utils.go":      "package main\n",
		"x_test.go":     "package main\n\n// " + strings.Repeat("x", maxTestColumns-3) + "\n",
		"y_test.go":     "package main\n\n// " + strings.Repeat("x", maxTestColumns-2) + "\n",
	})
	want := []string{
		"handlers.go:11: uses port of main.go", "handlers.go:9: uses config of main.go", "json.go:3:1: parse has 73 lines, at most 70",
		"json.go:3:1: parse has complexity 71, at most 15", "middleware.go:5: uses show of handlers.go",
		"store.go:3: uses config of main.go", "store.go:3: uses current of handlers.go", "telemetry.go:3: 140 columns, at most 120",
		"tenant.go:5: uses log of telemetry.go", "utils.go: not in layout, which says what it may use", "y_test.go:3: 141 columns, at most 140",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
