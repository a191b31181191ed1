<?php
$rows = [];
for ($i = 0; $i < 500; $i++) {
    $rows[] = md5((string) $i);
}
sort($rows);
header('Content-Type: application/json');
echo json_encode(['php' => PHP_MAJOR_VERSION, 'first' => $rows[0], 'matches' => preg_match_all('/[a-f]+/', implode($rows))]);
