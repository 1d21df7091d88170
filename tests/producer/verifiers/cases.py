r"""What counts as the same answer and what does not, chapter by chapter: gold, answers that are it, answers that are not."""

from __future__ import annotations

Case = tuple[str, tuple[str, ...], tuple[str, ...]]

CHAPTERS: dict[str, tuple[Case, ...]] = {
    "fractions": (
        (r"\frac{1}{2}", (r"\dfrac{1}{2}", r"\tfrac12", r"\frac12", "1/2", "0.5", ".5", r"\frac{2}{4}", r"\frac{-1}{-2}"),
         (r"\frac{1}{3}", "2", r"-\frac{1}{2}", "0.50001", r"\frac{2}{1}", "1 2", "12")),
        (r"\frac{1}{3}", ("1/3", r"\frac{2}{6}", r"\dfrac13"), ("0.33", "0.333333", "33/100", "3", r"\frac{3}{1}")),
        (r"\frac{7}{3}", (r"2\frac{1}{3}", r"2 \frac13", "7/3", "2 1/3"), (r"\frac{3}{7}", "2.33", r"\frac{2}{3}")),
        (r"-\frac{3}{4}", (r"\frac{-3}{4}", r"\frac{3}{-4}", "-0.75", "-3/4", "\u22120.75"), ("0.75", r"-\frac{4}{3}")),
        (r"\frac{\sqrt{3}}{3}", (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt3}3"), ("0.577", r"\frac{3}{\sqrt{3}}", r"\sqrt{3}")),
        (r"\frac{a}{b}", ("a/b", r"\dfrac{a}{b}"), (r"\frac{b}{a}", "ab")),
    ),
    "decimals": (
        ("0.25", (".25", r"\frac{1}{4}", "0.250", "1/4", "2.5\\times 10^{-1}"), ("0.2", "2.5", "0.026", "25")),
        ("3.14", ("3.14", "3.140", r"\frac{157}{50}"), (r"\pi", "3.1416", r"\frac{22}{7}", "3.1")),
        ("12", ("12.0", "12.00", "12.", "+12", r"\frac{24}{2}"), ("1.2", "120", "-12", "12.1", "1,2", "1 2")),
        ("1000000", ("1,000,000", "10^6", r"10^{6}", r"1\times10^6", "1e6", r"1{,}000{,}000"), ("1,000", "10^5", "100000")),
        ("0", ("0.0", "-0", r"0\%"), ("1", r"\emptyset", "o")),
    ),
    "percentages": (
        (r"50\%", ("50%", "50", "0.5", r"50 \%", r"\frac{1}{2}"), ("5%", "0.05", "500%", r"0.5\%")),
        ("50", (r"50\%", "50%"), (r"0.5\%", r"5\%", "0.5")),
        ("0.5", (r"50\%",), (r"0.5\%", r"5\%", "50")),
        (r"12.5\%", ("12.5%", "12.5", r"\frac{1}{8}"), (r"1.25\%", r"125\%", "12")),
    ),
    "units": (
        (r"5\text{ cm}", ("5", "5 cm", r"5\,\text{cm}", r"5\ \mathrm{cm}", r"5~\text{cm}"),
         (r"5\text{ m}", "5 m", r"50\text{ cm}", "5 kg", r"5\text{ cm}^2")),
        ("5", (r"5\text{ apples}", "5 apples", r"\$5", "5 dollars", r"5^\circ", r"5\text{ units}"), ("5x", "50 apples", "5 x")),
        (r"10\text{ apples}", ("10 apples", r"10\text{ apple}", "10"), (r"10\text{ oranges}", "1 apple", "apples")),
        (r"36\text{ square inches}", ("36", r"36\text{ square inches}"), (r"6\text{ square inches}", r"36\text{ cubic inches}")),
        (r"90^\circ", ("90", r"90^{\circ}", "90\u00b0", r"90\degree", "90 degrees"), ("9", "180", r"\pi")),
        (r"\$18.90", ("18.90", "18.9", "$18.90", r"\$18.9"), ("18", "1890", "19")),
    ),
    "separators": (
        ("1000", ("1,000", r"1\,000", "1 000", r"1{,}000", r"1,\!000", "1000.00"), ("1.000", "1,00", "100", "1,000,000")),
        ("(1, 200)", ("(1,200)",), ("(1, 20)", "1200", "(1200, 1)")),
        ("1234567", ("1,234,567", "1 234 567"), ("1,234,568", "123,4567")),
        ("-2,500", ("-2500", "\u22122500"), ("2500", "-25")),
    ),
    "signs": (
        ("-5", ("\u22125", "- 5", r"-5.0", "{-5}"), ("5", "+5", "--5", r"\pm 5")),
        (r"\pm 5", ("5, -5", "-5,5", r"\pm5", r"\{5,-5\}", "x=\\pm 5"), ("5", "-5", "5, 5")),
        (r"3 \pm \sqrt{2}", (r"3+\sqrt{2}, 3-\sqrt{2}", r"3-\sqrt2, 3+\sqrt2"), (r"3+\sqrt{2}", r"2 \pm \sqrt{3}")),
        (r"x = \pm 2", ("2,-2", r"\pm 2"), ("x=2", "4")),
    ),
    "spacing": (
        (r"\left(\frac{1}{2}, 3\right)", (r"(\frac12,3)", r"\left( \dfrac{1}{2} ,\, 3 \right)", "(0.5, 3)"),
         (r"\left(3, \frac{1}{2}\right)", r"\left[\frac{1}{2}, 3\right]", "(1, 2, 3)")),
        (r"x^2 + 1", ("x^{2}+1", r"x^2\,+\,1", "1+x^2", "$x^2+1$", r"\displaystyle x^2+1", r"\(x^2+1\)"), ("x^2-1", "x+1")),
        (r"2 \pi", (r"2\pi", "2\u03c0", r"2\cdot\pi", r"\pi\cdot 2", r"\boxed{2\pi}"), (r"\pi", r"2\pi^2", "6.28")),
        (r"\text{Tuesday}", ("Tuesday", r"\textbf{Tuesday}", "tuesday", r"\mathrm{Tuesday}"), ("Thursday", "Tue")),
    ),
    "sets": (
        (r"\{1, 2, 3\}", (r"\{3,2,1\}", r"\{1,2,3\}", r"\left\{1,2,3\right\}", "1, 2, 3"), (r"\{1,2\}", r"\{1,2,4\}", r"(1,2,3)")),
        (r"\{-1, \frac{1}{2}\}", (r"\{0.5, -1\}", r"\{\frac12,-1\}"), (r"\{1, \frac{1}{2}\}", r"\{-1, \frac{1}{2}, 0\}")),
        (r"\emptyset", (r"\varnothing", "\u2205", r"\{\}"), ("0", r"\{0\}")),
    ),
    "intervals": (
        (r"[0,1)", (r"\left[0,1\right)", "[0, 1)", r"[0,\frac{2}{2})"), ("[0,1]", "(0,1)", "(0,1]", "[0,2)", "[1,0)")),
        (r"(-\infty, 3]", (r"\left(-\infty,3\right]", r"( -\infty , 3 ]"), (r"(-\infty,3)", r"(\infty,3]", r"(-\infty,4]")),
        (r"(-\infty,0) \cup (1,\infty)", (r"(1,\infty)\cup(-\infty,0)", r"x \in (-\infty,0)\cup(1,\infty)"),
         (r"(-\infty,0)", r"(-\infty,0] \cup (1,\infty)", r"(-\infty,1)\cup(0,\infty)")),
        (r"x > 2", ("2 < x", "x>2"), (r"x \ge 2", "x < 2", "x > 3")),
        (r"-1 \le x < 4", (r"-1\leq x<4",), (r"-1 < x < 4", r"-1 \le x \le 4")),
    ),
    "tuples": (
        ("(1,2)", ("(1, 2)", r"\left(1,2\right)", r"(1.0,\frac42)"), ("(2,1)", "[1,2]", "(1,2,3)", "1", "(1,3)")),
        ("(3,-4)", ("(3, -4)", "(3,\u22124)"), ("(-3,4)", "(-4,3)", "(3,4)")),
        (r"(0, \frac{\pi}{2})", (r"(0,\pi/2)", r"(0, 0.5\pi)"), (r"(0, \frac{\pi}{3})", r"(\frac{\pi}{2}, 0)")),
    ),
    "matrices": (
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
         (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\ 3&\frac{8}{2}\end{pmatrix}"),
         (r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}",
          r"\begin{vmatrix}1&2\\3&4\end{vmatrix}")),
        (r"\begin{pmatrix} -1 \\ \frac{1}{2} \end{pmatrix}", (r"\begin{pmatrix}-1\\0.5\end{pmatrix}",),
         (r"\begin{pmatrix} -1 & \frac{1}{2} \end{pmatrix}", r"\begin{pmatrix}1\\0.5\end{pmatrix}")),
    ),
    "equations": (
        ("x = 5", ("5", "x=5.0", "5 = x"), ("x=-5", "y = 6", "x = 55", "-5")),
        ("5", ("x = 5", "x=5", "n = 5", "f(x) = 5"), ("x = 6", "5 = 6", "x > 5")),
        ("y = 2x + 1", ("2x+1=y", "y=1+2x", "y - 2x = 1", "2y = 4x + 2"), ("y = 2x - 1", "y = x + 1", "y=2x+2")),
        ("x^2 + y^2 = 4", ("y^2+x^2=4", "x^2+y^2-4=0"), ("x^2+y^2=2", "x^2-y^2=4", "x^2+y^2+4=0")),
    ),
    "several": (
        ("1, 2", ("2,1", "1,2", "1 and 2", r"1\text{ and }2", r"1 \text{ or } 2", r"\{1,2\}", "x=1,2"), ("1", "2", "1,2,3", "1,1")),
        (r"-1, \frac{1}{2}, 4", (r"4,-1,0.5", r"\frac12, 4, -1"), (r"-1, \frac{1}{2}", r"1, \frac{1}{2}, 4")),
        ("x = 1, y = 2", ("x=1,y=2", "y=2, x=1"), ("x=2, y=1", "x=1")),
    ),
    "formulas": (
        (r"\sqrt{8}", (r"2\sqrt{2}", r"\sqrt 8", "sqrt(8)", "8^{1/2}", r"\sqrt{4}\sqrt{2}"), ("2.83", "4", r"\sqrt{2}", r"8^2")),
        ("2^{10}", ("1024", "1,024", "4^5"), ("1023", "2^9", "20")),
        ("x^2 - 1", ("(x-1)(x+1)", "(x+1)(x-1)", "-1+x^2"), ("x^2+1", "(x-1)^2", "x^2")),
        (r"\frac{x+1}{2}", (r"\frac{1}{2}(x+1)", r"\frac{x}{2}+\frac{1}{2}", "0.5x+0.5"), (r"\frac{x}{2}+1", "x+1")),
        ("3x^2y", ("3yx^2", r"3 \cdot x^2 \cdot y"), ("3xy^2", "3x^2", "2x^2y")),
        (r"\ln 2", (r"\ln{2}", r"\ln(2)", r"\frac{1}{2}\ln 4"), ("0.69", r"\ln 3", r"\log_2 2")),
        (r"\sin x", (r"\sin(x)", r"\sin{x}"), (r"\cos x", r"\sin 2x")),
        ("3 + 4i", ("4i+3", "3+4i"), ("3-4i", "4+3i", "7i", "5")),
        (r"\frac{3\pi}{4}", (r"0.75\pi", r"3\pi/4", r"\frac{3}{4}\pi"), (r"\frac{4\pi}{3}", r"3\pi", "135")),
        (r"\binom{5}{2}", ("10",), ("20", r"\binom{5}{1}")),
        ("n!", ("n!",), ("n", "(n+1)!")),
    ),
    "words": (
        ("Yes", ("yes", r"\text{Yes}", "YES", "Yes."), ("No", "not yes", "yes and no")),
        (r"\text{Evelyn}", ("Evelyn", "evelyn"), ("Debra", "Evelyn and Debra")),
        (r"\text{(A)}", ("A", "(A)", r"\textbf{(A)}", r"\text{A}"), ("B", "(B)", "A, B", "AB")),
        ("east", ("East", r"\text{east}"), ("west", "northeast")),
    ),
}  # fmt: skip
